// Keys, the lease and the calm of the annotate page. The next pair waits in a template, so that an answer swaps the
// desk at once; the answer itself goes through the outbox. Without this file the buttons are plain submit buttons.
"use strict";
(() => {
  const QUIET_MS = 400; // a held key or a double click must not vote on a pair that nobody has read
  const RING_MS = 40; // the ring around what was chosen is seen, and the next pair is there within a blink
  const RENEW_MS = 60_000;
  const POLL_MS = 5_000;
  const SIDES = ["left", "right"];
  const CHOICES = [...SIDES, "tie", "both_bad"];
  const STACKED = { left: "first", right: "second" }; // where the panes lie on top of each other, see desk.css
  const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", space: "␣" };

  const root = document.getElementById("annotate");
  if (!root) return;
  const sentences = document.getElementById("sentences").dataset;
  const keys = JSON.parse(document.getElementById("keys").textContent);
  const actionOf = Object.fromEntries(Object.entries(keys).flatMap(([action, names]) => names.map((name) => [name, action])));
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
  let last = null; // the judgement that reasons can still be added to
  let following = { at: 0, shown: 0 }; // how long the pair has been on the screen
  const answered = new Set();
  const unsavedDesks = new Map(); // the desks of answers that are not saved: an undo brings them back as they were

  // The outbox

  const { person, project } = root.dataset;
  Outbox.person = person;
  const drafts = new Drafts(person);
  const tabs = new Tabs(`tiebreak:${person}:${project}`);
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
      if (!isPair() && outbox.waiting && !isSending()) fetchTurn();
    },
  });
  const savingLine = new SavingLine(document.getElementById("desk-outbox"), outbox, sentences, {
    retry: () => (outbox.waiting ? outbox.flush() : isPair() ? renew() : fetchTurn()),
    discard: discardFailed,
    goTo: (address) => location.assign(address),
  });
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
    fetchTurn();
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
    const { today, error, notice, guidelines } = page.content.getElementById("turn")?.dataset ?? {};
    if (today === undefined) return;
    noteGuidelines(Number(guidelines));
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
    following = { at: document.hidden ? 0 : performance.now(), shown: 0 };
    for (const button of all(".bar [data-action]")) button.disabled = !pair && button.dataset.action !== "undo";
    for (const choice of CHOICES) {
      const button = $(`button[value="${choice}"]`);
      const before = pair?.dataset.previous || pair?.dataset.unsaved;
      if (before) button.setAttribute("aria-pressed", String(before === choice));
      else button.removeAttribute("aria-pressed");
    }
    if (!pair) return;
    writeKeys(pair);
    if (pair.dataset.previous) document.getElementById("undo").disabled = true;
    $("#skip-menu [name=token]").value = pair.dataset.token;
    document.getElementById("skip-withdraws").hidden = !pair.dataset.previous;
    if (drafts.restore(pair.dataset.key, vote())) document.getElementById("saying").open = true;
    const start = $(".rewrite-start", pair);
    if (start) start.hidden = false;
    // A long conversation opens at its last turn; what scrolls sideways can be reached without a mouse.
    const turn = $(".turn.is-last", pair);
    if (turn?.previousElementSibling) turn.parentElement.scrollTop = turn.offsetTop - turn.parentElement.offsetTop;
    for (const wide of all("pre, table", pair)) if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    clamp(pair);
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
    if (isImproved && !SIDES.includes(choice)) return void say("desk-alert", sentences.noRewrite);
    const needsReason = desk().hasAttribute("data-asks-reason") && !isReasonGiven(form);
    if (needsReason) return askReason(choice, isStrong);
    const fields = [...new FormData(form)].filter(([name, value]) => name !== "csrfmiddlewaretoken" && value !== "");
    fields.push(["choice", choice], ["seconds", secondsOnScreen().toFixed(2)], ["guidelines", root.dataset.guidelines]);
    if (isStrong && SIDES.includes(choice) && form.elements.is_strong) fields.push(["is_strong", "on"]);
    offerWhy(choice, fields.some(([name]) => name === "reasons"));
    leave(choice, { kind: "vote", url: form.getAttribute("action"), fields, isFirst: !desk().dataset.previous });
  }

  const isReasonGiven = (form) => form.elements.comment.value.trim() || $("[name=reasons]:checked", form);

  function askReason(choice, isStrong) {
    pending = { choice, isStrong };
    root.dataset.chosen = choice;
    document.getElementById("saying").open = true;
    say("desk-alert", sentences.needsReason);
    $("[name=reasons]", desk())?.focus();
  }

  function skip(reason) {
    if (isBusy || isUndoing || !isPair()) return;
    hidePanels();
    last = null;
    document.getElementById("why").hidden = true;
    const url = $("#skip-menu form").getAttribute("action");
    leave("", { kind: "skip", url, fields: [["token", desk().dataset.token], ["reason", reason]] });
  }

  // The pair goes into the outbox, the next one comes onto the desk.
  function leave(choice, entry) {
    isBusy = isLeaving = true;
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
    document.getElementById("why").hidden = true;
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

  function secondsOnScreen() {
    return (following.shown + (following.at ? performance.now() - following.at : 0)) / 1000;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) following = { at: 0, shown: secondsOnScreen() * 1000 };
    else following.at = performance.now();
  });

  // Why, after the vote

  function offerWhy(choice, isSaid) {
    const strip = document.getElementById("why");
    last = { token: desk().dataset.token, key: desk().dataset.key };
    strip.hidden = isSaid || !$("[data-reason]", strip);
    say("why-said", sentenceOf(choice));
    for (const chip of all("[data-reason]", strip)) chip.setAttribute("aria-pressed", "false");
  }

  const whyHint = () => (document.getElementById("why").hidden || !keys.why[0] ? [] : [sentences.maySayWhy.replace("KEY", label(keys.why[0]))]);

  function sayWhy() {
    const strip = document.getElementById("why");
    if (!strip.hidden) $("[data-reason]", strip).focus();
  }

  function closeWhy() {
    const strip = document.getElementById("why");
    if (strip.contains(document.activeElement)) document.getElementById("desk-title").focus({ preventScroll: true });
    strip.hidden = true;
  }

  function toggleReason(chip) {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    const chosen = all('#why [aria-pressed="true"]').map((pressed) => ["reasons", pressed.dataset.reason]);
    outbox.add({ kind: "reasons", key: last.key, url: root.dataset.reasonsUrl, fields: [["token", last.token], ...chosen] });
  }

  // The guidelines: a judgement goes by the version that its page has shown, which may not be the newest

  const guidelinesPanel = document.getElementById("guidelines-panel");
  const guidelinesInPanel = () => Number($("#guidelines", guidelinesPanel)?.dataset.version ?? 0);
  const isPanelShown = () => guidelinesPanel.matches(":popover-open");

  function noteGuidelines(newest) {
    if (newest <= Number(root.dataset.newestGuidelines)) return; // a late answer knows no better
    root.dataset.newestGuidelines = newest;
    if (isPanelShown()) htmx.trigger(guidelinesPanel, "wanted");
    else document.getElementById("guidelines-text").replaceChildren();
    sayGuidelines();
  }

  function readGuidelines(version) {
    root.dataset.guidelines = Math.max(version, Number(root.dataset.guidelines));
  }

  function sayGuidelines() {
    const line = document.getElementById("desk-guidelines");
    const { guidelines: read, newestGuidelines: newest } = root.dataset;
    if (Number(read) >= Number(newest)) {
      if (line.contains(document.activeElement)) document.getElementById("desk-title").focus({ preventScroll: true });
      return void line.replaceChildren();
    }
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "button", popoverTargetElement: guidelinesPanel });
    button.append(sentences.readVersion.replace("VERSION", newest));
    const link = document.createElement("a");
    const href = `${root.dataset.guidelinesUrl}${newest}/?${new URLSearchParams({ against: read })}`;
    Object.assign(link, { href, target: "_blank", textContent: sentences.whatChanged });
    link.addEventListener("click", () => {
      readGuidelines(Number(newest));
      setTimeout(sayGuidelines);
    });
    line.replaceChildren(sentences.guidelinesChanged, " ", button, " ", link);
  }

  guidelinesPanel.addEventListener("htmx:afterSwap", () => isPanelShown() && readGuidelines(guidelinesInPanel()));
  guidelinesPanel.addEventListener("toggle", () => {
    if (!isPanelShown()) return sayGuidelines();
    if (guidelinesInPanel() < Number(root.dataset.newestGuidelines)) htmx.trigger(guidelinesPanel, "wanted");
    else readGuidelines(guidelinesInPanel());
  });

  // Views of the two texts: always of both at once

  const comparing = new WeakSet(); // pairs whose difference is on its way

  const VIEW_SAYS = {
    difference: [sentences.differenceShown, sentences.differenceHidden],
    raw: [sentences.rawShown, sentences.renderedShown],
  };

  function view(name) {
    const isShown = desk().dataset.view !== name;
    const wanted = isShown ? name : "rendered";
    desk().dataset.view = wanted;
    for (const pane of all(".pane", desk())) {
      $(".reading", pane).hidden = wanted !== "rendered";
      $(".raw", pane).hidden = wanted !== "raw";
      const words = $(".difference", pane);
      if (words) words.hidden = wanted !== "difference";
    }
    for (const button of all("[data-view-as]", desk())) button.setAttribute("aria-pressed", String(button.dataset.viewAs === wanted));
    say("announcer", VIEW_SAYS[name][isShown ? 0 : 1]); // a key changes no focus that would tell it
    clamp(desk());
  }

  async function showDifference() {
    const pair = desk();
    if (comparing.has(pair)) return; // pressed again before the words are there
    comparing.add(pair);
    const problem = $(".difference", pair) ? "" : await fetchDifference(pair);
    comparing.delete(pair);
    if (pair !== desk()) return;
    if (problem || !pending) say("desk-alert", problem);
    if (!problem) view("difference");
  }

  // Puts the compared words beside the texts, or returns what there is to say instead.
  async function fetchDifference(pair) {
    const url = `${root.dataset.differenceUrl}?${new URLSearchParams({ token: pair.dataset.token })}`;
    try {
      const response = await fetch(url, { headers: Outbox.headers(), signal: AbortSignal.timeout(Outbox.TIMEOUT_MS) });
      const answer = Outbox.read(response, await response.text());
      if (answer.isRefused === false) return addDifference(pair, JSON.parse(answer.text));
      const { signedOut, otherAccount, stale } = sentences;
      const known = { "signed-out": signedOut, "other-account": otherAccount, stale }[answer.trouble];
      return known ?? (answer.isPlain ? answer.text : sentences.noDifference);
    } catch {
      return sentences.noDifference;
    }
  }

  function addDifference(pair, words) {
    for (const side of SIDES) {
      const text = document.createElement("pre");
      text.className = "difference";
      text.dir = "auto";
      text.innerHTML = words[side]; // escaped where it was made; only its ins and del are markup
      $(`[data-side="${side}"] .pane-text`, pair).append(text);
    }
    return "";
  }

  // Long ones are cut off at the same height, and scroll together

  function clamp(pair) {
    const panes = all("[data-scrolls]", pair);
    const button = $("[data-show-all]", pair);
    pair.classList.add("is-clamped");
    const isLong = panes.some((pane) => pane.scrollHeight > pane.clientHeight + 1);
    const isOpen = button.getAttribute("aria-expanded") === "true";
    pair.classList.toggle("is-clamped", isLong && !isOpen);
    button.hidden = !isLong;
    for (const pane of panes) {
      pane.tabIndex = 0;
      pane.onscroll ??= () => follow(pane, panes.find((other) => other !== pane));
    }
  }

  let isFollowing = null;

  function follow(pane, other) {
    if (isFollowing === pane) return void (isFollowing = null);
    const share = pane.scrollTop / Math.max(1, pane.scrollHeight - pane.clientHeight);
    const top = Math.round(share * (other.scrollHeight - other.clientHeight));
    if (Math.abs(other.scrollTop - top) < 1) return;
    isFollowing = other;
    other.scrollTop = top;
  }

  function focusOther() {
    const panes = all("[data-scrolls]", desk());
    const at = panes.findIndex((pane) => pane.contains(document.activeElement));
    panes[at === 0 ? 1 : 0]?.focus({ preventScroll: false });
  }

  function startRewrite(side) {
    const text = $(`[data-side="${side}"] .raw`, desk()).textContent;
    const field = vote().elements.rewrite;
    field.value = text;
    drafts.keep(desk().dataset.key, [...new FormData(vote())]);
    field.focus();
  }

  function openSaying(field) {
    if (!field) return;
    document.getElementById("saying").open = true;
    field.focus();
    field.scrollIntoView({ block: "center" });
  }

  // Keys

  const isTyping = (element) => element.closest?.("textarea, select, [contenteditable], input:not([type=hidden], [type=checkbox], [type=radio])");
  const openPanel = () => document.querySelector("[popover]:popover-open");
  const hidePanels = () => openPanel()?.hidePopover();

  // What the key says, if somebody gave that an action; else a digit by its place in the row, so that digits work on
  // every layout; else a Latin letter. The number block says itself what it is: digits, or arrows without NumLock.
  function nameOf(event) {
    const said = event.key === " " ? "space" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (actionOf[said] && !/^\d$/.test(said)) return said;
    return /^Digit(\d)$/.exec(event.code)?.[1] ?? letterOf(event) ?? said;
  }

  // Where a layout or an input method has no Latin letters, the place on the keyboard says which is meant.
  function letterOf(event) {
    if (/^\p{Script=Latin}$/u.test(event.key)) return event.key.toLowerCase();
    return /^Key([A-Z])$/.exec(event.code)?.[1].toLowerCase();
  }

  const isUndo = (event) => event.ctrlKey && !event.shiftKey && letterOf(event) === "z";

  const ACTIONS = {
    ...Object.fromEntries(CHOICES.map((choice) => [choice, (event) => choose(choice, event.shiftKey)])),
    skip: () => document.getElementById("skip-menu").togglePopover(),
    undo,
    comment: () => openSaying(vote()?.elements.comment),
    rewrite: () => openSaying(vote()?.elements.rewrite),
    why: sayWhy,
    difference: showDifference,
    raw: () => view("raw"),
    focus: focusOther,
    guidelines: () => document.getElementById("guidelines-panel").togglePopover(),
    help: () => document.getElementById("help").togglePopover(),
  };
  const WITHOUT_PAIR = new Set(["undo", "why", "guidelines", "help"]);

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || event.altKey || event.metaKey) return;
    if (isTyping(event.target)) return leaveText(event);
    if (event.repeat || (event.ctrlKey && !isUndo(event))) return;
    const name = event.ctrlKey ? keys.undo[0] : nameOf(event);
    if (isInUse(event, name)) return;
    const panel = openPanel();
    if (name === "Escape" && event.target.closest?.("#why")) closeWhy();
    const handled = panel ? keyInPanel(panel, name) : keyForReason(name) || keyForAction(event, name);
    if (handled) event.preventDefault();
  });

  function leaveText(event) {
    if (event.key !== "Escape") return;
    event.target.blur();
    document.getElementById("desk-title").focus({ preventScroll: true });
  }

  // Space presses a button, arrows move in a group of choices or scroll a wide table: those stay what they are.
  function isInUse(event, name) {
    if (name === "space") return event.target.closest?.("button, summary, a, input");
    if (!name.startsWith("Arrow")) return false;
    return event.target.closest?.("input[type=radio], pre[tabindex='0'], table[tabindex='0']");
  }

  // Nothing votes behind an open panel; its digits are its own, and the key that opened it closes it. Any other key
  // stays the browser's: Escape closes, Enter presses the button that has the focus, arrows scroll.
  function keyInPanel(panel, name) {
    const button = $(`[data-digit="${CSS.escape(name)}"]`, panel);
    const isItsOwn = actionOf[name] && panel.dataset.panelOf === actionOf[name];
    if (button) skip(button.value);
    else if (isItsOwn) panel.hidePopover();
    return Boolean(button || isItsOwn);
  }

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

  function keyForAction(event, name) {
    const action = actionOf[name];
    if (!action || (!isPair() && !WITHOUT_PAIR.has(action))) return false;
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

  document.addEventListener("input", (event) => {
    if (event.target.form === vote() && isPair()) drafts.keep(desk().dataset.key, [...new FormData(vote())]);
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button");
    if (!button || !root.contains(button)) return;
    if (button.dataset.reason !== undefined) toggleReason(button);
    else if (button.hasAttribute("data-why-close")) closeWhy();
    else if (button.dataset.startFrom) startRewrite(button.dataset.startFrom);
    else if (button.dataset.viewAs) ACTIONS[button.dataset.viewAs]();
    else if (button.hasAttribute("data-show-all")) {
      button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
      clamp(desk());
    }
  });

  // The keys as they are written on the page

  const label = (name) => NAMES[name] ?? (name.length === 1 ? name.toUpperCase() : name);

  function cap(name) {
    const element = document.createElement("kbd");
    element.textContent = label(name);
    return element;
  }

  function writeKeys(within = root) {
    for (const element of all("[data-key-of]", within)) element.textContent = label(keys[element.dataset.keyOf][0] ?? "");
    for (const button of all("[data-action], [data-view-as]", within)) {
      const names = keys[button.dataset.action ?? button.dataset.viewAs];
      button.setAttribute("aria-keyshortcuts", names.map((name) => (name.length === 1 ? name.toUpperCase() : name)).join(" "));
    }
    for (const list of all("[data-keys-of]", within)) {
      const actions = list.dataset.keysOf.split(" ");
      const names = actions.length > 1 ? actions.flatMap((action) => keys[action].slice(0, 1)) : keys[actions[0]];
      const before = list.dataset.with ? [cap(list.dataset.with), " "] : [];
      list.replaceChildren(...before, ...names.flatMap((name, index) => (index ? [" ", cap(name)] : [cap(name)])));
    }
  }

  // The lease

  async function fetchTurn() {
    if (document.hidden || isBusy || isUndoing || isSending()) return;
    const shown = isPair() ? desk().dataset.key : "";
    const url = `${root.dataset.annotateUrl}?${new URLSearchParams({ shown })}`;
    try {
      const response = await fetch(url, { headers: Outbox.headers(), signal: AbortSignal.timeout(Outbox.TIMEOUT_MS) });
      const answer = Outbox.read(response, await response.text());
      if (answer.location) return void location.assign(answer.location);
      if (answer.trouble) return sayOutbox(answer.trouble, answer);
      if (!answer.isTurn) return; // something in between has answered; the next try is near
      sayOutbox("");
      if (shown === (isPair() ? desk().dataset.key : "")) takeTurn(answer.text, { isLate: true });
    } catch {
      // Offline for a moment: the next try is near.
    }
  }

  async function renew() {
    if (!isPair() || document.hidden || isBusy) return;
    const { key, token } = desk().dataset;
    const answer = await Outbox.post(root.dataset.renewUrl, [["token", token]]);
    if (desk().dataset.key !== key) return;
    if (answer.trouble && answer.trouble !== "offline") sayOutbox(answer.trouble, answer);
    else if (answer.status === 204 || answer.isPlain) {
      sayOutbox("");
      say("desk-lease", answer.text);
    }
  }

  setInterval(renew, RENEW_MS);
  setInterval(() => !isPair() && fetchTurn(), POLL_MS);
  document.addEventListener("visibilitychange", () => (isPair() ? renew() : fetchTurn()));

  // A page that goes gives the pair back that it holds unseen, unless another tab holds the same one; a page that comes
  // back from the cache asks again.
  addEventListener("pagehide", () => {
    const isLast = tabs.go();
    if (ahead() && isLast) Outbox.post(root.dataset.giveBackUrl, []);
    setAhead(null);
  });
  addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    tabs.come();
    fetchTurn();
  });

  writeKeys();
  sayGuidelines();
  root.dataset.script = "";
  if (isPair() && outbox.has(desk().dataset.key)) {
    wait();
  } else {
    prepare();
    ready();
  }
  if (outbox.waiting) outbox.flush();
  else fetchTurn();
})();
