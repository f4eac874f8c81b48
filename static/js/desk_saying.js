// What is said beside the choice: reasons, a comment, a rewrite; kept as a draft from the first letter on.
"use strict";
class DeskSaying {
  #desk;
  #drafts;

  // desk() -> the pair on the screen, or what stands there without one
  constructor(desk, drafts) {
    this.#desk = desk;
    this.#drafts = drafts;
    document.addEventListener("input", (event) => this.#form && event.target.form === this.#form && this.#keep());
  }

  // Without a pair there is none.
  get #form() {
    return document.getElementById("vote");
  }

  get hasReason() {
    return Boolean(this.#form.elements.comment.value.trim() || this.#form.querySelector("[name=reasons]:checked"));
  }

  // Fills in what had been begun of the pair on the desk.
  prepare() {
    if (this.#drafts.restore(this.#desk().dataset.key, this.#form)) DeskSaying.#open();
    const start = this.#desk().querySelector(".rewrite-start");
    if (start) start.hidden = false;
  }

  askReason() {
    DeskSaying.#open();
    this.#form.querySelector("[name=reasons]")?.focus();
  }

  openAt(name) {
    const field = this.#form?.elements[name];
    if (!field) return;
    DeskSaying.#open();
    field.focus();
    field.scrollIntoView({ block: "center" });
  }

  startRewrite(side) {
    const text = this.#desk().querySelector(`[data-side="${side}"] .raw`).textContent;
    const field = this.#form.elements.rewrite;
    field.value = text;
    this.#keep();
    field.focus();
  }

  #keep() {
    this.#drafts.keep(this.#desk().dataset.key, [...new FormData(this.#form)]);
  }

  static #open() {
    document.getElementById("saying").open = true;
  }
}
