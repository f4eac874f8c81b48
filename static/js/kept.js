// The answers that this browser keeps until they are saved. Each stands under a name of its own, so that tabs do not
// write over each other's: tiebreak:PERSON:PROJECT:ID.
"use strict";
class Kept {
  static GRACE_MS = 20_000; // younger ones of another tab are still in its own hands
  static #ROOT = "tiebreak:";
  static #TAB = "tiebreak:tab";

  // The same across reloads. A copy of a tab has the name of the first, and sends twice, which is harmless.
  static tab = Kept.#nameOfTab();

  isWritable = true;
  #name;

  constructor(person, project) {
    this.#name = `${Kept.#ROOT}${person}:${project}:`;
  }

  // What this tab had kept before it was reloaded, and of another tab what it seems to have left behind.
  left() {
    return Kept.#read(this.#name)
      .map(({ entry }) => entry)
      .filter(Kept.#isLeft)
      .sort((one, other) => one.at - other.at);
  }

  // How many answers of a person are left, by project; of everybody where nobody is named.
  static countLeft(person) {
    const keys = new Map();
    for (const { name, entry } of Kept.#read(person ? `${Kept.#ROOT}${person}:` : Kept.#ROOT)) {
      const project = name.split(":")[2];
      if (Kept.#isLeft(entry)) keys.set(project, (keys.get(project) ?? new Set()).add(entry.key));
    }
    return [...keys].map(([project, said]) => [project, said.size]);
  }

  put(entry) {
    try {
      localStorage.setItem(this.#name + entry.id, JSON.stringify(entry));
    } catch {
      this.isWritable = false; // forbidden or full: what is not sent lasts as long as the page
    }
  }

  drop(entry) {
    try {
      localStorage.removeItem(this.#name + entry.id);
    } catch {
      // forbidden: nothing was stored either
    }
  }

  isGone(entry) {
    try {
      return localStorage.getItem(this.#name + entry.id) === null;
    } catch {
      return false;
    }
  }

  static #isLeft(entry) {
    return entry.tab === Kept.tab || Date.now() - entry.at > Kept.GRACE_MS;
  }

  static #read(start) {
    try {
      const names = Object.keys(localStorage).filter((name) => name.startsWith(start));
      return names.map((name) => ({ name, entry: Kept.#parsed(localStorage.getItem(name)) })).filter(({ entry }) => entry?.id);
    } catch {
      return []; // forbidden: nothing was stored
    }
  }

  static #parsed(text) {
    try {
      return JSON.parse(text);
    } catch {
      return null; // not one of ours, and no reason to lose those that are
    }
  }

  static #nameOfTab() {
    try {
      if (!sessionStorage.getItem(Kept.#TAB)) sessionStorage.setItem(Kept.#TAB, String(Math.random()));
      return sessionStorage.getItem(Kept.#TAB);
    } catch {
      return String(Math.random());
    }
  }
}
