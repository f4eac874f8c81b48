// The other tabs in which the same person has the same project open. They are given the same pairs, so only the last
// one that goes gives back what is held unseen.
"use strict";
class Tabs {
  #me = String(Math.random());
  #others = new Set();
  #channel;

  constructor(name) {
    this.#channel = new BroadcastChannel(name);
    this.#channel.addEventListener("message", ({ data }) => this.#hear(data));
    this.come();
  }

  come() {
    this.#say("come");
  }

  // Returns whether this was the last one.
  go() {
    this.#say("gone");
    return this.#others.size === 0;
  }

  #say(what) {
    this.#channel.postMessage({ what, from: this.#me });
  }

  #hear({ what, from }) {
    if (what === "gone") this.#others.delete(from);
    else this.#others.add(from);
    if (what === "come") this.#say("here");
  }
}
