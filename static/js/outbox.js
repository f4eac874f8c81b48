// What somebody has said and the server has not confirmed yet. Kept on this device, across reloads, and sent one after
// the other until it has arrived. Sending twice is harmless: an answer to one lease counts once. An answer leaves only
// by a reply that is certainly about it; whatever else comes back, it stays, and does not hold up the others.
"use strict";
class Outbox {
  static FIRST_RETRY_MS = 1_000;
  static LAST_RETRY_MS = 30_000;
  static TIMEOUT_MS = 15_000;
  static MOST_ALIVE = 60_000; // bytes: browsers let no more than 64 KiB outlive their page
  static TRIES_IN_FRONT = 3; // while something before the server fails: it may be this answer that it fails at
  static PASSING = [408, 429, 502, 503, 504];

  #kept;
  #handlers;
  #entries = [];
  #newest = null; // what an undo is about: the last thing that was said here
  #sending = null; // the entry that is on its way
  #isRunning = false;
  #run = Promise.resolve();
  #trouble = "";
  #answer = {}; // with which the trouble came
  #failures = 0;
  #timer = 0;

  // handlers: beforeSend(entry) -> more fields; arrived(entry, answer); refused(entry, answer, reasons said meanwhile);
  // changed(trouble, answer): "" or why something still waits: a trouble of `read`, or "elsewhere" for a location.
  constructor(kept, handlers) {
    this.#kept = kept;
    this.#handlers = handlers;
    this.#adopt();
    this.#newest = this.#entries.findLast((entry) => entry.kind !== "reasons" && entry.tab === Kept.tab) ?? null;
    addEventListener("online", () => this.flush());
    addEventListener("beforeunload", (event) => this.waiting && !kept.isWritable && event.preventDefault());
    setInterval(() => this.#adopt() && this.flush(), Kept.GRACE_MS);
  }

  #adopt() {
    const isKnown = (entry) => this.#entries.some((known) => known.id === entry.id);
    const found = this.#kept.left().filter((entry) => !isKnown(entry));
    this.#entries.push(...found.map((entry) => ({ ...entry, isLate: true, isAdopted: true })));
    return found.length > 0;
  }

  get waiting() {
    return this.#entries.length;
  }

  // How many pairs it is about: what somebody says of one, they call one answer.
  get answers() {
    return new Set(this.#entries.map((entry) => entry.key)).size;
  }

  // Those that came back for what they are, and not for the connection.
  get failed() {
    return this.#entries.filter((entry) => entry.failure);
  }

  count(isCounted) {
    return this.#entries.filter(isCounted).length;
  }

  get isStored() {
    return this.#kept.isWritable;
  }

  has(key) {
    return this.#entries.some((entry) => entry.key === key && entry.kind !== "reasons");
  }

  add(entry) {
    if (entry.kind === "reasons") this.#remove(this.#reasonsOf(entry.key)); // clicked together, and not on its way yet
    const said = { ...entry, id: `${Date.now()}-${Math.random()}`, at: Date.now(), tab: Kept.tab, tries: 0 };
    if (entry.kind !== "reasons") this.#newest = said;
    this.#entries.push(said);
    this.#kept.put(said);
    this.flush();
  }

  #reasonsOf(key) {
    return this.#entries.filter((entry) => entry.kind === "reasons" && entry.key === key && entry !== this.#sending);
  }

  #remove(entries) {
    entries.forEach((entry) => this.#kept.drop(entry));
    this.#entries = this.#entries.filter((entry) => !entries.includes(entry));
  }

  // Taking back

  // The newest answer, if it is not saved. One that has been on its way may have arrived, so it is sent once more first.
  async newestUnsent() {
    const isWaiting = (entry) => this.#entries.includes(entry);
    const isUntouched = isWaiting(this.#newest) && this.#newest !== this.#sending && !this.#newest.isLate;
    if (this.waiting && !isUntouched) await this.flush();
    return isWaiting(this.#newest) ? this.#newest : null;
  }

  // Forgets an answer; returns the reasons that were given for it meanwhile.
  takeBack(entry) {
    const reasons = this.#reasonsOf(entry.key);
    this.#remove([entry, ...reasons]);
    if (entry === this.#newest) this.#newest = this.#entries.findLast((other) => other.kind !== "reasons") ?? null;
    if (!this.#isRunning) this.#handlers.changed(this.waiting ? this.#trouble : "", this.#answer);
    return reasons.flatMap((said) => said.fields.filter(([name]) => name !== "token"));
  }

  // Sending

  // One run at a time; whoever asks meanwhile waits for its end.
  flush() {
    if (!this.#isRunning) this.#run = this.#sendAll();
    return this.#run;
  }

  async #sendAll() {
    this.#isRunning = true;
    clearTimeout(this.#timer);
    let trouble = "";
    try {
      while (this.#entries.length && !trouble) trouble = await this.#sendFirst();
    } finally {
      this.#isRunning = false;
      this.#sending = null;
    }
    this.#trouble = trouble;
    this.#handlers.changed(trouble, this.#answer);
    if (trouble) this.#retryLater();
  }

  #retryLater() {
    const wait = Math.min(Outbox.FIRST_RETRY_MS * 2 ** this.#failures, Outbox.LAST_RETRY_MS);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.flush(), wait);
  }

  async #sendFirst() {
    const entry = (this.#sending = this.#entries[0]);
    if (entry.isAdopted && this.#kept.isGone(entry)) {
      this.#remove([entry]); // its own tab was there after all, and may have said more since
      return "";
    }
    const answer = await Outbox.post(entry.url, [...entry.fields, ...this.#handlers.beforeSend(entry)]);
    this.#sending = null;
    const trouble = Outbox.#troubleOf(entry, answer);
    if (trouble) return this.#putOff(entry, trouble, answer);
    this.#failures = 0;
    if (answer.isRefused) this.#handlers.refused(entry, answer, this.takeBack(entry));
    else this.#arrive(entry, answer);
    return "";
  }

  #arrive(entry, answer) {
    this.#remove([entry]);
    this.#handlers.arrived(entry, answer);
  }

  // Why an entry has not arrived; "" if it has, or if Tiebreak itself has refused it and said why.
  static #troubleOf(entry, answer) {
    if (answer.trouble === "stale" && entry.isAdopted) return "failed"; // the page is new, so it is not the page
    if (answer.trouble) return answer.trouble;
    if (answer.location) return "elsewhere";
    const isRead = entry.kind === "reasons" ? answer.status === 204 || (answer.status === 409 && answer.isPlain) : answer.isTurn;
    return isRead ? "" : "failed";
  }

  #putOff(entry, trouble, answer) {
    this.#answer = answer;
    entry.isLate = true;
    entry.tries += trouble === "offline" && answer.status ? 1 : 0;
    entry.failure = trouble === "failed" ? answer : null;
    if (entry.failure || entry.tries >= Outbox.TRIES_IN_FRONT) this.#toTheBack(entry.key);
    return trouble;
  }

  // With what else is said of the same pair, in its order.
  #toTheBack(key) {
    const [others, same] = [false, true].map((isSame) => this.#entries.filter((entry) => (entry.key === key) === isSame));
    this.#entries = [...others, ...same];
  }

  // Requests

  static person = ""; // whose page this is: the server answers nobody else on it

  static headers() {
    return { "X-CSRFToken": Outbox.csrfToken(), "X-Person": Outbox.person, "HX-Request": "true" };
  }

  static csrfToken() {
    // The cookie is newer than the page where somebody has signed in again meanwhile.
    const cookie = document.cookie.match(/(?:^|; )(?:__Host-)?csrftoken=([^;]+)/);
    return cookie?.[1] ?? JSON.parse(document.body.getAttribute("hx-headers"))["X-CSRFToken"];
  }

  static async post(url, fields) {
    const headers = Outbox.headers();
    const body = new URLSearchParams(fields);
    const keepalive = body.toString().length < Outbox.MOST_ALIVE; // of somebody who votes and leaves
    const signal = AbortSignal.timeout(Outbox.TIMEOUT_MS);
    try {
      const response = await fetch(url, { method: "POST", headers, body, keepalive, signal });
      return Outbox.read(response, await response.text());
    } catch {
      return { trouble: "offline" };
    }
  }

  // What a reply is: with `trouble` ("offline", "signed-out", "other-account", "stale" or "failed") or a `location` to go
  // to instead of an answer, or with the server's word. `isTurn`: it brings a turn, as every reply of the desk to an
  // answer does; a page of something in between, a sign-in or a maintenance page, does not, whatever its status.
  static read(response, text) {
    const { status } = response;
    const location = response.headers.get("HX-Redirect");
    if (location?.includes("/sign-in/") || status === 401) return { trouble: "signed-out", status };
    if (location) return { location, status, text: "" };
    if (response.headers.has("X-Other-Person")) return { trouble: "other-account", status };
    if (status === 403) return { trouble: "stale", status, text: "" };
    if (Outbox.PASSING.includes(status)) return { trouble: "offline", status };
    if (status >= 500) return { trouble: "failed", status, text: "" };
    const isPlain = response.headers.get("Content-Type")?.startsWith("text/plain");
    const isTurn = [200, 409].includes(status) && Outbox.#hasTurn(text);
    return { isRefused: !response.ok, isPlain, isTurn, text, status };
  }

  static #hasTurn(text) {
    const page = document.createElement("template");
    page.innerHTML = text;
    return page.content.getElementById("turn")?.dataset.today !== undefined;
  }
}
