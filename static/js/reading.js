// How long the pair on the desk has been seen: the time in which the page is hidden does not count.
"use strict";
class ReadingTime {
  #at = 0;
  #shown = 0;

  constructor() {
    document.addEventListener("visibilitychange", () => this.#change());
  }

  start() {
    this.#at = document.hidden ? 0 : performance.now();
    this.#shown = 0;
  }

  get seconds() {
    return (this.#shown + (this.#at ? performance.now() - this.#at : 0)) / 1000;
  }

  #change() {
    if (document.hidden) [this.#at, this.#shown] = [0, this.seconds * 1000];
    else this.#at = performance.now();
  }
}
