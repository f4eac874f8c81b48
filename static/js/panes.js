// The two texts of a pair: rendered, raw or with the words that differ, always both at once. Long ones are cut off at
// the same height, and scroll together.
"use strict";
class Panes {
  static SIDES = ["left", "right"];

  #desk;
  #differenceUrl;
  #sentences;
  #says;
  #comparing = new WeakSet(); // pairs whose difference is on its way
  #following = null; // the pane that scrolls because the other one does

  // desk() -> the pair on the screen, which another one replaces; says: shown(sentence), problem(text), "" for none
  constructor(desk, differenceUrl, sentences, says) {
    this.#desk = desk;
    this.#differenceUrl = differenceUrl;
    this.#sentences = sentences;
    this.#says = says;
  }

  // Views

  view(name) {
    const desk = this.#desk();
    const isShown = desk.dataset.view !== name;
    const wanted = isShown ? name : "rendered";
    desk.dataset.view = wanted;
    for (const pane of desk.querySelectorAll(".pane")) {
      pane.querySelector(".reading").hidden = wanted !== "rendered";
      pane.querySelector(".raw").hidden = wanted !== "raw";
      const words = pane.querySelector(".difference");
      if (words) words.hidden = wanted !== "difference";
    }
    for (const button of desk.querySelectorAll("[data-view-as]")) button.setAttribute("aria-pressed", String(button.dataset.viewAs === wanted));
    this.#says.shown(this.#sentenceOf(name, isShown)); // a key changes no focus that would tell it
    this.#clamp(desk);
  }

  #sentenceOf(name, isShown) {
    const { differenceShown, differenceHidden, rawShown, renderedShown } = this.#sentences;
    return { difference: [differenceShown, differenceHidden], raw: [rawShown, renderedShown] }[name][isShown ? 0 : 1];
  }

  async showDifference() {
    const pair = this.#desk();
    if (this.#comparing.has(pair)) return; // pressed again before the words are there
    this.#comparing.add(pair);
    const problem = pair.querySelector(".difference") ? "" : await this.#fetchDifference(pair);
    this.#comparing.delete(pair);
    if (pair !== this.#desk()) return;
    this.#says.problem(problem);
    if (!problem) this.view("difference");
  }

  // Puts the compared words beside the texts, or returns what there is to say instead.
  async #fetchDifference(pair) {
    const url = `${this.#differenceUrl}?${new URLSearchParams({ token: pair.dataset.token })}`;
    try {
      const response = await fetch(url, { headers: Outbox.headers(), signal: AbortSignal.timeout(Outbox.TIMEOUT_MS) });
      const answer = Outbox.read(response, await response.text());
      if (answer.isRefused === false) return Panes.#addDifference(pair, JSON.parse(answer.text));
      const { signedOut, otherAccount, stale } = this.#sentences;
      const known = { "signed-out": signedOut, "other-account": otherAccount, stale }[answer.trouble];
      return known ?? (answer.isPlain ? answer.text : this.#sentences.noDifference);
    } catch {
      return this.#sentences.noDifference;
    }
  }

  static #addDifference(pair, words) {
    for (const side of Panes.SIDES) {
      const text = document.createElement("pre");
      text.className = "difference";
      text.dir = "auto";
      text.innerHTML = words[side]; // escaped where it was made; only its ins and del are markup
      pair.querySelector(`[data-side="${side}"] .pane-text`).append(text);
    }
    return "";
  }

  // Heights and scrolling

  prepare(pair) {
    // A long conversation opens at its last turn; what scrolls sideways can be reached without a mouse.
    const turn = pair.querySelector(".turn.is-last");
    if (turn?.previousElementSibling) turn.parentElement.scrollTop = turn.offsetTop - turn.parentElement.offsetTop;
    for (const wide of pair.querySelectorAll("pre, table")) if (wide.scrollWidth > wide.clientWidth) wide.tabIndex = 0;
    this.#clamp(pair);
  }

  #clamp(pair) {
    const panes = Panes.#scrolling(pair);
    const button = pair.querySelector("[data-show-all]");
    pair.classList.add("is-clamped");
    const isLong = panes.some((pane) => pane.scrollHeight > pane.clientHeight + 1);
    const isOpen = button.getAttribute("aria-expanded") === "true";
    pair.classList.toggle("is-clamped", isLong && !isOpen);
    button.hidden = !isLong;
    for (const pane of panes) {
      pane.tabIndex = 0;
      pane.onscroll ??= () => this.#follow(pane, panes.find((other) => other !== pane));
    }
  }

  // Shows all of both, or no more than fits again.
  toggleAll(button) {
    button.setAttribute("aria-expanded", String(button.getAttribute("aria-expanded") !== "true"));
    this.#clamp(this.#desk());
  }

  #follow(pane, other) {
    if (this.#following === pane) return void (this.#following = null);
    const share = pane.scrollTop / Math.max(1, pane.scrollHeight - pane.clientHeight);
    const top = Math.round(share * (other.scrollHeight - other.clientHeight));
    if (Math.abs(other.scrollTop - top) < 1) return;
    this.#following = other;
    other.scrollTop = top;
  }

  focusOther() {
    const panes = Panes.#scrolling(this.#desk());
    const at = panes.findIndex((pane) => pane.contains(document.activeElement));
    panes[at === 0 ? 1 : 0]?.focus({ preventScroll: false });
  }

  static #scrolling(pair) {
    return [...pair.querySelectorAll("[data-scrolls]")];
  }
}
