// The line of the annotate page about answers that are not saved yet: how many, why, and what can be done about it.
"use strict";
class SavingLine {
  #line;
  #outbox;
  #sentences;
  #acts;
  #isAboutAnswers = false;

  // acts: retry(), discard(), goTo(address)
  constructor(line, outbox, sentences, acts) {
    this.#line = line;
    this.#outbox = outbox;
    this.#sentences = sentences;
    this.#acts = acts;
  }

  // Returns whether kept answers have all arrived by now.
  say(trouble, answer = {}) {
    if (!trouble && this.#outbox.waiting) return false; // the last trouble is still the case
    const text = this.#textOf(trouble);
    const hasArrived = this.#isAboutAnswers && !trouble;
    this.#isAboutAnswers = Boolean(text && this.#outbox.waiting);
    if (!text) this.#line.replaceChildren();
    else if (this.#line.firstChild?.textContent !== text) this.#line.replaceChildren(text, ...this.#buttons(trouble, answer).flatMap((button) => [" ", button]));
    return hasArrived;
  }

  #textOf(trouble) {
    const { signedOut, otherAccount, stale, elsewhere, noStore } = this.#sentences;
    const known = { "signed-out": signedOut, "other-account": otherAccount, stale, elsewhere }[trouble];
    if (known) return known;
    if (!trouble || !this.#outbox.waiting) return ""; // nothing is at stake, and the page asks again by itself
    if (!this.#outbox.isStored) return noStore;
    const failure = trouble === "failed" && this.#outbox.failed[0]?.failure;
    return failure ? this.#textOfFailed(failure) : this.#kept();
  }

  #textOfFailed({ status, isPlain, text }) {
    const { failed, odd } = this.#sentences;
    const why = isPlain ? text : status < 300 ? odd : failed.replace("STATUS", status);
    return `${why} ${this.#kept()}`;
  }

  #kept() {
    const count = this.#outbox.answers;
    return count === 1 ? this.#sentences.keptOne : this.#sentences.kept.replace("COUNT", count);
  }

  #buttons(trouble, answer) {
    const { retry, reload, goOn, discard } = this.#sentences;
    if (trouble === "stale") return [this.#button(reload, () => location.reload())];
    if (trouble === "elsewhere") return [this.#button(goOn, () => this.#acts.goTo(answer.location))];
    const again = this.#button(retry, this.#acts.retry);
    return trouble === "failed" ? [again, this.#button(discard, this.#acts.discard)] : [again];
  }

  #button(text, act) {
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "button", textContent: text });
    button.addEventListener("click", act);
    return button;
  }
}
