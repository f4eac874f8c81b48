// The turns and answers of the annotate page, and its calm. The next pair waits in a template, so that an answer swaps
// the desk at once; the answer itself goes through the outbox. Without this file the buttons are plain submit buttons.
"use strict";
(() => {
  const QUIET_MS = 400; // a held key or a double click must not vote on a pair that nobody has read
  const RING_MS = 40; // the ring around what was chosen is seen, and the next pair is there within a blink
  const CHOICES = [...Panes.SIDES, "tie", "both_bad"];
  const STACKED = { left: "first", right: "second" }; // where the panes lie on top of each other, see desk.css

  const root = document.getElementById("annotate");
  if (!root) return;
  const sentences = document.getElementById("sentences").dataset;
  const desk = () => document.getElementById("desk");
  const vote = () => document.getElementById("vote");
  const $ = (selector, within = root) => within.querySelector(selector);
  const all = (selector, within = root) => [...within.querySelectorAll(selector)];
  const sentenceOf = (choice) => sentences[(matchMedia("(max-width: 700px)").matches && STACKED[choice]) || choice];
  const say = (id, text) => (document.getElementById(id).textContent = text);

  let quietUntil = 0;
  let isBusy = false; // an answer is being painted, or an undo is on its way
  let isUndoing = false; // what it brings back is not known yet
  let undoQuietUntil = 0; // twice the same key in a moment undoes once
  let isLeaving = false; // the ring is seen, and the next pair not yet
  const afterwards = []; // what the server answered meanwhile
  let pending = null; // a choice that waits for its reason
  const answered = new Set();
  const unsavedDesks = new Map(); // the desks of answers that are not saved: an undo brings them back as they were

  // What the other files know, and what they tell

  const { person, project } = root.dataset;
  Outbox.person = person;
  const drafts = new Drafts(person);
  const saying = new DeskSaying(desk, drafts);
  const readingTime = new ReadingTime();
  const panes = new Panes(desk, root.dataset.differenceUrl, sentences, {
    shown: (sentence) => say("announcer", sentence),
    problem: (text) => (text || !pending) && say("desk-alert", text),
  });
  const guidelines = new Guidelines(document.getElementById("guidelines-panel"), document.getElementById("desk-guidelines"), root.dataset, sentences);
  const keys = new DeskKeys(root, JSON.parse(document.getElementById("keys").textContent), {
    escape: (element) => element.closest?.("#why") && why.close(),
    skip,
    answer: keyForReason,
    perform,
  });
  const lease = new Lease(root.dataset, new Tabs(`tiebreak:${person}:${project}`), {
    pair: () => (isPair() ? desk().dataset : null),
    isBusy: () => isBusy,
    isSettled: () => !isBusy && !isUndoing && !isSending(),
    giveUp,
    takeTurn: (html) => takeTurn(html, { isLate: true }),
    sayLease: (text) => say("desk-lease", text),
    sayTrouble: sayOutbox,
  });

  // The outbox

  const outbox = new Outbox(new Kept(person, project), {
    beforeSend: (entry) => (entry.kind === "reasons" ? [] : [["shown", onScreen()?.dataset.key ?? ""]]),
    arrived: (entry, answer) => {
      if (entry.kind === "reasons") return;
      unsavedDesks.delete(entry.key);
      takeTurn(answer.text, { isLate: entry.isLate });
    },
    refused: (entry, answer, reasons) => {
      if (entry.kind === "reasons") return void say("desk-alert", answer.text);
      putBack(entry, reasons);
      takeTurn(answer.text, {});
    },
    changed: (trouble, answer) => {
      sayOutbox(trouble, answer);
      if (!isPair() && outbox.waiting && !isSending()) lease.fetchTurn();
    },
  });
  const savingLine = new SavingLine(document.getElementById("desk-outbox"), outbox, sentences, {
    retry: () => (outbox.waiting ? outbox.flush() : lease.ask()),
    discard: discardFailed,
    goTo: (address) => location.assign(address),
  });
  const why = new Why(document.getElementById("why"), outbox, root.dataset.reasonsUrl);
  // One that fails for what it is keeps nothing else back.
  const isSending = () => outbox.waiting > outbox.failed.length;

  function sayOutbox(trouble, answer) {
    if (savingLine.say(trouble, answer)) announce(sentences.arrived);
    if (trouble && !isPair()) explainWait(trouble === "offline" ? sentences.offlineWait : sentences.unsavedWait);
  }

  // What was said with an answer that does not count is not lost: its pair comes back with it.
  function putBack(entry, reasons) {
    answered.delete(entry.key);
    unsavedDesks.delete(entry.key);
    if (entry.kind === "vote") drafts.keep(entry.key, [...entry.fields, ...reasons]);
  }

  function discardFailed() {
    for (const entry of outbox.failed) putBack(entry, outbox.takeBack(entry));
    say("desk-notice", sentences.discarded);
    lease.fetchTurn();
  }

  // Turns: what the server answers with

  const isPair = () => desk()?.dataset.state === "pair";

  // What is looked at, or will be in a moment: while the ring is seen, the pair that follows.
  const onScreen = () => [isLeaving ? ahead() : desk()].find((pair) => pair?.dataset.state === "pair");

  function takeTurn(html, how) {
    if (isLeaving) afterwards.push([html, how]);
    else take(html, how);
  }

  function take(html, { isLate = false, isUndo = false }) {
    const page = document.createElement("template");
    page.innerHTML = html;
    const { today, error, notice, guidelines: newest } = page.content.getElementById("turn")?.dataset ?? {};
    if (today === undefined) return;
    guidelines.note(Number(newest));
    setToday(Number(today) + outbox.count((entry) => entry.isFirst));
    if (error || isUndo) say("desk-alert", error); // an answer to the pair before takes back nothing said of this one
    if (!isLate) say("desk-notice", notice);
    const now = page.content.getElementById("desk");
    const next = page.content.getElementById("ahead").content.getElementById("desk");
    if (isUndo || !isPair() || isAnswered(desk())) showFirst(now, next, isUndo);
    else keepAhead(now, next);
  }

  // Nothing on the screen that could be judged: show what the server holds for this person, or why there is nothing.
  function showFirst(now, next, isUndo) {
    const open = [now, next].filter((pair) => pair?.dataset.state === "pair" && !isAnswered(pair));
    if (open.length) {
      setAhead(open[1]);
      swap(open[0], isUndo ? sentences.again : sentences.next);
    } else if (now?.dataset.state === "waiting" && !isSending()) {
      const isNew = desk().dataset.state !== "waiting" || $("#desk-title").textContent !== $("#desk-title", now).textContent;
      setAhead(null);
      if (isNew) swap(now, $("#desk-title", now).textContent);
      else $(".waiting", desk()).replaceWith($(".waiting", now)); // when there may be more is another time by now
    }
  }

  // A pair is being read: nothing is swapped under the reader's eyes. What else the server holds comes after it.
  function keepAhead(now, next) {
    const shown = desk().dataset.key;
    const isNext = (pair) => pair?.dataset.state === "pair" && pair.dataset.key !== shown && !isAnswered(pair);
    setAhead([now, next].find(isNext));
  }

  const isAnswered = (pair) => answered.has(pair.dataset.key) || outbox.has(pair.dataset.key);
  const ahead = () => document.getElementById("ahead").content.getElementById("desk");
  const setAhead = (pair) => document.getElementById("ahead").content.replaceChildren(...(pair ? [pair] : []));

  // Returns whether a pair was held unseen.
  function giveUp() {
    const isHeld = Boolean(ahead());
    setAhead(null);
    return isHeld;
  }

  function swap(pair, sentence) {
    desk().replaceWith(pair);
    isBusy = false;
    pending = null;
    delete root.dataset.chosen;
    prepare();
    quietUntil = performance.now() + QUIET_MS;
    delete document.documentElement.dataset.ready; // a desk that comes back has been ready before
    const top = $("#place").getBoundingClientRect().top + window.scrollY - 8;
    if (window.scrollY > top) window.scrollTo({ top, behavior: "instant" });
    document.getElementById("desk-title").focus({ preventScroll: true });
    announce(sentence);
    setTimeout(ready, QUIET_MS + 5);
  }

  function showNext() {
    const pair = ahead();
    isLeaving = false;
    if (pair) swap(pair, sentences.next);
    else wait();
    afterwards.splice(0).forEach(([html, how]) => take(html, how));
  }

  // The next pair is on its way; rare, because it is fetched while this one is read.
  function wait() {
    const section = document.createElement("section");
    Object.assign(section, { id: "desk", className: "desk" });
    Object.assign(section.dataset, { state: "moment", key: "" });
    section.innerHTML = '<header class="desk-head"><h1 id="desk-title" tabindex="-1"></h1></header>';
    section.firstChild.firstChild.textContent = sentences.moment;
    swap(section, sentences.moment);
  }

  function explainWait(text) {
    if (desk().dataset.state === "moment") document.getElementById("desk-title").textContent = text;
  }

  function prepare() {
    const pair = isPair() ? desk() : null;
    readingTime.start();
    for (const button of all(".bar [data-action]")) button.disabled = !pair && button.dataset.action !== "undo";
    for (const choice of CHOICES) {
      const button = $(`button[value="${choice}"]`);
      const before = pair?.dataset.previous || pair?.dataset.unsaved;
      if (before) button.setAttribute("aria-pressed", String(before === choice));
      else button.removeAttribute("aria-pressed");
    }
    if (!pair) return;
    keys.write(pair);
    if (pair.dataset.previous) document.getElementById("undo").disabled = true;
    $("#skip-menu [name=token]").value = pair.dataset.token;
    document.getElementById("skip-withdraws").hidden = !pair.dataset.previous;
    saying.prepare();
    panes.prepare(pair);
  }

  // Names the pair that takes keys now, for whoever drives the page; a newer desk has a timer of its own.
  function ready() {
    if (performance.now() >= quietUntil) document.documentElement.dataset.ready = desk().dataset.key ?? "";
  }

  const announce = (text) => say("announcer", `${root.dataset.said ?? ""} ${text}`.trim());

  function setToday(count) {
    say("today", count);
    document.getElementById("tens").value = count > 0 ? ((count - 1) % 10) + 1 : 0;
  }

  // Answers

  function choose(choice, isStrong = false) {
    if (isBusy || isUndoing || performance.now() < quietUntil || !isPair() || !CHOICES.includes(choice)) return;
    const form = vote();
    const isImproved = form.elements.rewrite?.value.trim();
    if (isImproved && !Panes.SIDES.includes(choice)) return void say("desk-alert", sentences.noRewrite);
    const needsReason = desk().hasAttribute("data-asks-reason") && !saying.hasReason;
    if (needsReason) return askReason(choice, isStrong);
    const fields = [...new FormData(form)].filter(([name, value]) => name !== "csrfmiddlewaretoken" && value !== "");
    fields.push(["choice", choice], ["seconds", readingTime.seconds.toFixed(2)], ["guidelines", guidelines.read]);
    if (isStrong && Panes.SIDES.includes(choice) && form.elements.is_strong) fields.push(["is_strong", "on"]);
    why.offer(desk().dataset, sentenceOf(choice), fields.some(([name]) => name === "reasons"));
    leave(choice, { kind: "vote", url: form.getAttribute("action"), fields, isFirst: !desk().dataset.previous });
  }

  function askReason(choice, isStrong) {
    pending = { choice, isStrong };
    root.dataset.chosen = choice;
    say("desk-alert", sentences.needsReason);
    saying.askReason();
  }

  function skip(reason) {
    if (isBusy || isUndoing || !isPair()) return;
    DeskKeys.openPanel()?.hidePopover();
    why.drop();
    const url = $("#skip-menu form").getAttribute("action");
    leave("", { kind: "skip", url, fields: [["token", desk().dataset.token], ["reason", reason]] });
  }

  // The pair goes into the outbox, the next one comes onto the desk.
  function leave(choice, entry) {
    isBusy = isLeaving = true;
    undoQuietUntil = 0; // the next undo is of this answer, and not the last one twice
    const key = desk().dataset.key;
    answered.add(key);
    unsavedDesks.set(key, desk());
    drafts.drop(key);
    root.dataset.chosen = choice;
    root.dataset.said = choice ? [sentenceOf(choice), ...whyHint()].join(" ") : "";
    for (const id of ["desk-alert", "desk-lease", "desk-notice"]) say(id, "");
    document.getElementById("undo").disabled = false;
    outbox.add({ ...entry, key });
    if (entry.isFirst) setToday(Number(document.getElementById("today").textContent) + 1);
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (isCalm) showNext();
    else setTimeout(showNext, RING_MS);
  }

  function whyHint() {
    const key = keys.labelOf("why");
    return why.isOffered && key ? [sentences.maySayWhy.replace("KEY", key)] : [];
  }

  async function undo() {
    const button = document.getElementById("undo");
    if (isBusy || isUndoing || button.disabled || performance.now() < undoQuietUntil) return;
    isUndoing = true;
    const slow = setTimeout(() => say("desk-notice", sentences.undoing), QUIET_MS);
    await undoLast(button.form.getAttribute("action"));
    clearTimeout(slow);
    if (document.getElementById("desk-notice").textContent === sentences.undoing) say("desk-notice", "");
    isUndoing = false;
  }

  async function undoLast(url) {
    const unsaved = await outbox.newestUnsent();
    why.hide();
    root.dataset.said = "";
    if (!unsaved) await undoSaved(url);
    else if (unsavedDesks.has(unsaved.key)) bringBack(unsaved);
    else say("desk-alert", sentences.undoUnsaved);
  }

  async function undoSaved(url) {
    const answer = await Outbox.post(url, []);
    if (answer.location) return void location.assign(answer.location);
    if (answer.isTurn) {
      sayOutbox("");
      takeTurn(answer.text, { isUndo: !answer.isRefused });
      undoQuietUntil = performance.now() + QUIET_MS;
    } else if (["signed-out", "other-account", "stale"].includes(answer.trouble)) sayOutbox(answer.trouble, answer);
    else say("desk-alert", answer.trouble === "offline" ? sentences.undoOffline : sentences.undoFailed);
  }

  // An answer that nobody has got is taken back here alone; the pair that was on the screen comes after it.
  function bringBack(entry) {
    const { key } = entry;
    const [pair, following] = [unsavedDesks.get(key), isPair() ? desk() : null];
    putBack(entry, outbox.takeBack(entry));
    if (entry.kind === "vote" && !pair.dataset.previous) setToday(Number(document.getElementById("today").textContent) - 1);
    pair.dataset.unsaved = new Map(entry.fields).get("choice") ?? "";
    for (const pane of all(".pane", pair)) pane.classList.toggle("is-previous", pane.dataset.side === pair.dataset.unsaved);
    swap(pair, sentences.again);
    setAhead(following);
    undoQuietUntil = quietUntil;
    say("desk-notice", sentences.takenBack);
  }

  // Keys and buttons

  const ACTIONS = {
    ...Object.fromEntries(CHOICES.map((choice) => [choice, (event) => choose(choice, event.shiftKey)])),
    skip: () => document.getElementById("skip-menu").togglePopover(),
    undo,
    comment: () => saying.openAt("comment"),
    rewrite: () => saying.openAt("rewrite"),
    why: () => why.focus(),
    difference: () => panes.showDifference(),
    raw: () => panes.view("raw"),
    focus: () => panes.focusOther(),
    guidelines: () => document.getElementById("guidelines-panel").togglePopover(),
    help: () => document.getElementById("help").togglePopover(),
  };
  const WITHOUT_PAIR = new Set(["undo", "why", "guidelines", "help"]);

  function keyForReason(name) {
    if (!pending || !isPair()) return false;
    const chips = all("[name=reasons]", vote());
    if (/^[1-9]$/.test(name) && chips[name - 1]) chips[name - 1].click();
    else if (name === "Enter") choose(pending.choice, pending.isStrong);
    else if (name === "Escape") dropPending();
    else return false;
    return true;
  }

  function dropPending() {
    pending = null;
    delete root.dataset.chosen;
    say("desk-alert", "");
  }

  function perform(action, event) {
    if (!isPair() && !WITHOUT_PAIR.has(action)) return false;
    ACTIONS[action](event);
    return true;
  }

  document.addEventListener("submit", (event) => {
    const kind = event.target.dataset.answer;
    if (!kind) return;
    event.preventDefault();
    if (kind === "vote") choose(event.submitter?.value);
    else if (kind === "skip") skip(event.submitter?.value ?? "");
    else undo();
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button || !root.contains(button)) return;
    if (button.dataset.reason !== undefined) why.toggle(button);
    else if (button.hasAttribute("data-why-close")) why.close();
    else if (button.dataset.startFrom) saying.startRewrite(button.dataset.startFrom);
    else if (button.dataset.viewAs) ACTIONS[button.dataset.viewAs]();
    else if (button.hasAttribute("data-show-all")) panes.toggleAll(button);
  });

  keys.write();
  guidelines.say();
  root.dataset.script = "";
  if (isPair() && outbox.has(desk().dataset.key)) {
    wait();
  } else {
    prepare();
    ready();
  }
  if (outbox.waiting) outbox.flush();
  else lease.fetchTurn();
})();
