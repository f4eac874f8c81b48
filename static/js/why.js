// The strip that asks "Why?" of the pair that has just been judged: reasons can still be added to that judgement.
"use strict";
class Why {
  #strip;
  #outbox;
  #url;
  #last = null; // the judgement that reasons can still be added to: its token and its key

  constructor(strip, outbox, url) {
    this.#strip = strip;
    this.#outbox = outbox;
    this.#url = url;
  }

  get isOffered() {
    return !this.#strip.hidden;
  }

  // isSaid: a reason was given with the judgement.
  offer({ token, key }, sentence, isSaid) {
    this.#last = { token, key };
    this.#strip.hidden = isSaid || !this.#strip.querySelector("[data-reason]");
    document.getElementById("why-said").textContent = sentence;
    for (const chip of this.#strip.querySelectorAll("[data-reason]")) chip.setAttribute("aria-pressed", "false");
  }

  focus() {
    if (this.isOffered) this.#strip.querySelector("[data-reason]").focus();
  }

  // By somebody who may have the focus in it.
  close() {
    if (this.#strip.contains(document.activeElement)) document.getElementById("desk-title").focus({ preventScroll: true });
    this.hide();
  }

  hide() {
    this.#strip.hidden = true;
  }

  // There is no judgement to ask about any more.
  drop() {
    this.#last = null;
    this.hide();
  }

  toggle(chip) {
    chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
    const chosen = [...this.#strip.querySelectorAll('[aria-pressed="true"]')].map((pressed) => ["reasons", pressed.dataset.reason]);
    const { token, key } = this.#last;
    this.#outbox.add({ kind: "reasons", key, url: this.#url, fields: [["token", token], ...chosen] });
  }
}
