// The guidelines beside the desk: their panel, and the line that says that there are newer ones. A judgement goes by the
// version that its page has shown, which may not be the newest.
"use strict";
class Guidelines {
  #panel;
  #line;
  #page;
  #sentences;

  // page: the data of the annotate page, which says what has been read, what is newest, and where they stand
  constructor(panel, line, page, sentences) {
    this.#panel = panel;
    this.#line = line;
    this.#page = page;
    this.#sentences = sentences;
    panel.addEventListener("htmx:afterSwap", () => this.#isShown && this.#readUpTo(this.#inPanel));
    panel.addEventListener("toggle", () => this.#toggled());
  }

  // The version that a judgement goes by.
  get read() {
    return this.#page.guidelines;
  }

  note(newest) {
    if (newest <= Number(this.#page.newestGuidelines)) return; // a late answer knows no better
    this.#page.newestGuidelines = newest;
    if (this.#isShown) htmx.trigger(this.#panel, "wanted");
    else document.getElementById("guidelines-text").replaceChildren();
    this.say();
  }

  say() {
    const { guidelines: read, newestGuidelines: newest } = this.#page;
    if (Number(read) >= Number(newest)) {
      if (this.#line.contains(document.activeElement)) document.getElementById("desk-title").focus({ preventScroll: true });
      return void this.#line.replaceChildren();
    }
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "button", popoverTargetElement: this.#panel });
    button.append(this.#sentences.readVersion.replace("VERSION", newest));
    this.#line.replaceChildren(this.#sentences.guidelinesChanged, " ", button, " ", this.#linkTo(newest, read));
  }

  #linkTo(newest, read) {
    const link = document.createElement("a");
    const href = `${this.#page.guidelinesUrl}${newest}/?${new URLSearchParams({ against: read })}`;
    Object.assign(link, { href, target: "_blank", textContent: this.#sentences.whatChanged });
    link.addEventListener("click", () => {
      this.#readUpTo(Number(newest));
      setTimeout(() => this.say());
    });
    return link;
  }

  get #inPanel() {
    return Number(this.#panel.querySelector("#guidelines")?.dataset.version ?? 0);
  }

  get #isShown() {
    return this.#panel.matches(":popover-open");
  }

  #readUpTo(version) {
    this.#page.guidelines = Math.max(version, Number(this.#page.guidelines));
  }

  #toggled() {
    if (!this.#isShown) return this.say();
    if (this.#inPanel < Number(this.#page.newestGuidelines)) htmx.trigger(this.#panel, "wanted");
    else this.#readUpTo(this.#inPanel);
  }
}
