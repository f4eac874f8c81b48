// What somebody has said and the server has not confirmed yet. Kept on this device, across reloads, and sent one after
// the other until it has arrived. Sending twice is harmless: an answer to one lease counts once.
"use strict";
class Outbox {
  static FIRST_RETRY_MS = 1_000;
  static LAST_RETRY_MS = 30_000;
  static TIMEOUT_MS = 15_000;
  static ADOPT_AFTER_MS = 20_000; // younger ones of another tab are still in its own hands
  static TAB = "tiebreak:tab";

  #name;
  #handlers;
  #tab = Outbox.#nameOfTab();
  #entries = [];
  #sending = false;
  #failures = 0;
  #timer = 0;
  #isStored = true;

  // handlers: beforeSend(entry) -> more fields; arrived(entry, page, isLate); refused(entry, page, text);
  // changed(state) with how many wait, and why: "", "offline", "signed-out", "stale".
  constructor(name, handlers) {
    this.#name = name;
    this.#handlers = handlers;
    this.#adopt();
    addEventListener("online", () => this.flush());
    setInterval(() => this.#adopt() && this.flush(), Outbox.ADOPT_AFTER_MS);
  }

  // What this tab had not sent before it was reloaded, at once; of another tab what it seems to have left behind.
  #adopt() {
    const isLeft = (entry) => entry.tab === this.#tab || Date.now() - entry.at > Outbox.ADOPT_AFTER_MS;
    const isKnown = (entry) => this.#entries.some((known) => known.id === entry.id);
    const found = this.#stored().filter((entry) => isLeft(entry) && !isKnown(entry));
    this.#entries.push(...found.map((entry) => ({ ...entry, isLate: true, isAdopted: true })));
    return found.length > 0;
  }

  get waiting() {
    return this.#entries.length;
  }

  count(isCounted) {
    return this.#entries.filter(isCounted).length;
  }

  get isStored() {
    return this.#isStored;
  }

  has(key) {
    return this.#entries.some((entry) => entry.key === key);
  }

  add(entry) {
    if (entry.kind === "reasons") this.#dropOlderReasons(entry.key);
    const kept = { ...entry, id: `${Date.now()}-${Math.random()}`, at: Date.now(), tab: this.#tab };
    this.#entries.push(kept);
    this.#store(kept);
    this.flush();
  }

  #dropOlderReasons(key) {
    // What somebody clicks together replaces what is not on its way yet.
    const isOlder = (other, index) => other.kind === "reasons" && other.key === key && !(this.#sending && index === 0);
    this.#entries.filter(isOlder).forEach((other) => this.#forget(other));
    this.#entries = this.#entries.filter((other, index) => !isOlder(other, index));
  }

  async flush() {
    if (this.#sending) return;
    this.#sending = true;
    clearTimeout(this.#timer);
    let trouble = "";
    while (this.#entries.length && !trouble) trouble = await this.#sendFirst();
    this.#sending = false;
    this.#handlers.changed(trouble);
    if (trouble) this.#retryLater();
  }

  #retryLater() {
    const wait = Math.min(Outbox.FIRST_RETRY_MS * 2 ** this.#failures, Outbox.LAST_RETRY_MS);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.flush(), wait);
  }

  async #sendFirst() {
    const entry = this.#entries[0];
    if (entry.isAdopted && this.#isGone(entry)) {
      this.#entries.shift(); // its own tab was there after all, and may have said more since
      return "";
    }
    const answer = await Outbox.post(entry.url, [...entry.fields, ...this.#handlers.beforeSend(entry)]);
    if (answer.trouble) {
      entry.isLate = true;
      return answer.trouble;
    }
    this.#failures = 0;
    this.#entries.shift();
    this.#forget(entry);
    if (answer.isRefused) this.#handlers.refused(entry, answer);
    else this.#handlers.arrived(entry, answer);
    return "";
  }

  static csrfToken() {
    // The cookie is newer than the page where somebody has signed in again meanwhile.
    const cookie = document.cookie.match(/(?:^|; )(?:__Host-)?csrftoken=([^;]+)/);
    return cookie?.[1] ?? JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRFToken"];
  }

  static async post(url, fields) {
    const headers = { "X-CSRFToken": Outbox.csrfToken(), "HX-Request": "true" };
    const signal = AbortSignal.timeout(Outbox.TIMEOUT_MS);
    try {
      const response = await fetch(url, { method: "POST", headers, body: new URLSearchParams(fields), signal });
      return Outbox.read(response, await response.text());
    } catch {
      return { trouble: "offline" };
    }
  }

  static read(response, text) {
    const location = response.headers.get("HX-Redirect");
    if (location?.includes("/sign-in/")) return { trouble: "signed-out" };
    if (location) return { location, text: "" };
    if (response.status === 403) return { trouble: "stale" };
    if (response.status >= 500 || response.status === 429 || response.status === 408) return { trouble: "offline" };
    const isPlain = response.headers.get("Content-Type")?.startsWith("text/plain");
    return { isRefused: !response.ok, isPlain, text, status: response.status };
  }

  // Each entry under a name of its own, so that tabs do not write over each other's.

  #stored() {
    try {
      const names = Object.keys(localStorage).filter((name) => name.startsWith(this.#name));
      const entries = names.map((name) => JSON.parse(localStorage.getItem(name)));
      return entries.filter((entry) => entry?.id).sort((one, other) => one.at - other.at);
    } catch {
      return [];
    }
  }

  #isGone(entry) {
    try {
      return localStorage.getItem(this.#name + entry.id) === null;
    } catch {
      return false;
    }
  }

  // The same across reloads. A copy of a tab has the name of the first, and sends twice, which is harmless.
  static #nameOfTab() {
    try {
      if (!sessionStorage.getItem(Outbox.TAB)) sessionStorage.setItem(Outbox.TAB, String(Math.random()));
      return sessionStorage.getItem(Outbox.TAB);
    } catch {
      return String(Math.random());
    }
  }

  #store(entry) {
    try {
      localStorage.setItem(this.#name + entry.id, JSON.stringify(entry));
    } catch {
      this.#isStored = false; // forbidden or full: what is not sent lasts as long as the page
    }
  }

  #forget(entry) {
    try {
      localStorage.removeItem(this.#name + entry.id);
    } catch {
      // forbidden: nothing was stored either
    }
  }
}
