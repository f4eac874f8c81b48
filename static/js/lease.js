// What the page asks the server by itself: for more time while a pair is read, and for a pair while there is none. A
// page that goes gives back what it holds unseen.
"use strict";
class Lease {
  static RENEW_MS = 60_000;
  static POLL_MS = 5_000;

  #urls;
  #tabs;
  #page;

  // urls: annotateUrl, renewUrl, giveBackUrl. page: pair() -> the data of the pair that is read, or null; isBusy(): an
  // answer is being painted; isSettled(): nor is an undo or an answer on its way; giveUp() -> whether a pair was held
  // unseen; takeTurn(html); sayLease(text); sayTrouble(trouble, answer), "" for none
  constructor(urls, tabs, page) {
    this.#urls = urls;
    this.#tabs = tabs;
    this.#page = page;
    setInterval(() => this.#renew(), Lease.RENEW_MS);
    setInterval(() => !page.pair() && this.fetchTurn(), Lease.POLL_MS);
    document.addEventListener("visibilitychange", () => this.ask());
    addEventListener("pagehide", () => this.#leave());
    addEventListener("pageshow", (event) => event.persisted && this.#comeBack());
  }

  ask() {
    return this.#page.pair() ? this.#renew() : this.fetchTurn();
  }

  async fetchTurn() {
    if (document.hidden || !this.#page.isSettled()) return;
    const shown = this.#shown;
    const url = `${this.#urls.annotateUrl}?${new URLSearchParams({ shown })}`;
    try {
      const response = await fetch(url, { headers: Outbox.headers(), signal: AbortSignal.timeout(Outbox.TIMEOUT_MS) });
      const answer = Outbox.read(response, await response.text());
      if (answer.location) return void location.assign(answer.location);
      if (answer.trouble) return this.#page.sayTrouble(answer.trouble, answer);
      if (!answer.isTurn) return; // something in between has answered; the next try is near
      this.#page.sayTrouble("");
      if (shown === this.#shown) this.#page.takeTurn(answer.text);
    } catch {
      // Offline for a moment: the next try is near.
    }
  }

  get #shown() {
    return this.#page.pair()?.key ?? "";
  }

  async #renew() {
    const pair = this.#page.pair();
    if (!pair || document.hidden || this.#page.isBusy()) return;
    const { key, token } = pair;
    const answer = await Outbox.post(this.#urls.renewUrl, [["token", token]]);
    if (this.#shown !== key) return;
    if (answer.trouble && answer.trouble !== "offline") this.#page.sayTrouble(answer.trouble, answer);
    else if (answer.status === 204 || answer.isPlain) {
      this.#page.sayTrouble("");
      this.#page.sayLease(answer.text);
    }
  }

  // Unless another tab holds the same pair.
  #leave() {
    const isLast = this.#tabs.go();
    if (this.#page.giveUp() && isLast) Outbox.post(this.#urls.giveBackUrl, []);
  }

  // From the browser's cache, and knows nothing of what has been since.
  #comeBack() {
    this.#tabs.come();
    this.fetchTurn();
  }
}
