// What somebody has begun to say of a pair and not sent: a comment, a rewrite, what is ticked. It lasts as long as the
// tab, across reloads, and ends with the answer.
"use strict";
class Drafts {
  static #ROOT = "tiebreak-draft:";
  static #NOT_SAID = ["csrfmiddlewaretoken", "token", "choice", "seconds"];

  #name;
  #said = new Map(); // as well as in the storage, which may be forbidden

  constructor(person) {
    this.#name = `${Drafts.#ROOT}${person}:`;
    Drafts.#dropOthers(this.#name);
  }

  keep(key, fields) {
    const said = fields.filter(([name, value]) => value && !Drafts.#NOT_SAID.includes(name));
    this.#said.set(key, said);
    try {
      sessionStorage.setItem(this.#name + key, JSON.stringify(said));
    } catch {
      // forbidden or full: it lasts as long as the page
    }
  }

  drop(key) {
    this.#said.delete(key);
    try {
      sessionStorage.removeItem(this.#name + key);
    } catch {
      // forbidden: nothing was stored either
    }
  }

  // Fills a form in as it was left; returns whether there was anything to fill in.
  restore(key, form) {
    const said = this.#said.get(key) ?? this.#stored(key);
    if (said) Drafts.#fillIn(form, said);
    return Boolean(said?.length);
  }

  static #fillIn(form, said) {
    for (const field of form.elements) {
      const values = said.filter(([name]) => name === field.name).map(([, value]) => value);
      if (["checkbox", "radio"].includes(field.type)) field.checked = values.includes(field.value);
      else if (field.type === "textarea") field.value = values[0] ?? "";
    }
  }

  #stored(key) {
    try {
      return JSON.parse(sessionStorage.getItem(this.#name + key));
    } catch {
      return null;
    }
  }

  // Somebody else has signed in in this tab: what they find is their own.
  static #dropOthers(mine) {
    try {
      const names = Object.keys(sessionStorage).filter((name) => name.startsWith(Drafts.#ROOT) && !name.startsWith(mine));
      names.forEach((name) => sessionStorage.removeItem(name));
    } catch {
      // forbidden: there are none
    }
  }
}
