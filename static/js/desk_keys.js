// The keys of the annotate page: which one means which action, where a key stays what it is to the browser, and how
// they are written on the page.
"use strict";
class DeskKeys {
  static #SAYS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓", space: "␣" };

  #root;
  #keys;
  #actionOf;
  #acts;

  // keys: the names of the keys of each action. acts: escape(element with the focus); skip(reason); answer(name) and
  // perform(action, event) -> whether the key was of use
  constructor(root, keys, acts) {
    this.#root = root;
    this.#keys = keys;
    this.#actionOf = Object.fromEntries(Object.entries(keys).flatMap(([action, names]) => names.map((name) => [name, action])));
    this.#acts = acts;
    document.addEventListener("keydown", (event) => this.#press(event));
  }

  static openPanel() {
    return document.querySelector("[popover]:popover-open");
  }

  #press(event) {
    if (event.defaultPrevented || event.isComposing || event.altKey || event.metaKey) return;
    if (DeskKeys.#isTyping(event.target)) return DeskKeys.#leaveText(event);
    if (event.repeat || (event.ctrlKey && !DeskKeys.#isUndo(event))) return;
    const name = event.ctrlKey ? this.#keys.undo[0] : this.#nameOf(event);
    if (DeskKeys.#isInUse(event, name)) return;
    const panel = DeskKeys.openPanel();
    if (name === "Escape") this.#acts.escape(event.target);
    const handled = panel ? this.#pressInPanel(panel, name) : this.#acts.answer(name) || this.#perform(event, name);
    if (handled) event.preventDefault();
  }

  // What the key says, if somebody gave that an action; else a digit by its place in the row, so that digits work on
  // every layout; else a Latin letter. The number block says itself what it is: digits, or arrows without NumLock.
  #nameOf(event) {
    const said = event.key === " " ? "space" : event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (this.#actionOf[said] && !/^\d$/.test(said)) return said;
    return /^Digit(\d)$/.exec(event.code)?.[1] ?? DeskKeys.#letterOf(event) ?? said;
  }

  // Where a layout or an input method has no Latin letters, the place on the keyboard says which is meant.
  static #letterOf(event) {
    if (/^\p{Script=Latin}$/u.test(event.key)) return event.key.toLowerCase();
    return /^Key([A-Z])$/.exec(event.code)?.[1].toLowerCase();
  }

  static #isUndo(event) {
    return event.ctrlKey && !event.shiftKey && DeskKeys.#letterOf(event) === "z";
  }

  static #isTyping(element) {
    return element.closest?.("textarea, select, [contenteditable], input:not([type=hidden], [type=checkbox], [type=radio])");
  }

  static #leaveText(event) {
    if (event.key !== "Escape") return;
    event.target.blur();
    document.getElementById("desk-title").focus({ preventScroll: true });
  }

  // Space presses a button, arrows move in a group of choices or scroll a wide table: those stay what they are.
  static #isInUse(event, name) {
    if (name === "space") return event.target.closest?.("button, summary, a, input");
    if (!name.startsWith("Arrow")) return false;
    return event.target.closest?.("input[type=radio], pre[tabindex='0'], table[tabindex='0']");
  }

  // Nothing votes behind an open panel; its digits are its own, and the key that opened it closes it. Any other key
  // stays the browser's: Escape closes, Enter presses the button that has the focus, arrows scroll.
  #pressInPanel(panel, name) {
    const button = panel.querySelector(`[data-digit="${CSS.escape(name)}"]`);
    const isItsOwn = this.#actionOf[name] && panel.dataset.panelOf === this.#actionOf[name];
    if (button) this.#acts.skip(button.value);
    else if (isItsOwn) panel.hidePopover();
    return Boolean(button || isItsOwn);
  }

  #perform(event, name) {
    const action = this.#actionOf[name];
    return Boolean(action) && this.#acts.perform(action, event);
  }

  // The keys as they are written on the page

  // The first key of an action; "" where it has none.
  labelOf(action) {
    return DeskKeys.#label(this.#keys[action][0] ?? "");
  }

  static #label(name) {
    return DeskKeys.#SAYS[name] ?? (name.length === 1 ? name.toUpperCase() : name);
  }

  static #cap(name) {
    const element = document.createElement("kbd");
    element.textContent = DeskKeys.#label(name);
    return element;
  }

  write(within = this.#root) {
    for (const element of within.querySelectorAll("[data-key-of]")) element.textContent = this.labelOf(element.dataset.keyOf);
    for (const button of within.querySelectorAll("[data-action], [data-view-as]")) {
      const names = this.#keys[button.dataset.action ?? button.dataset.viewAs];
      button.setAttribute("aria-keyshortcuts", names.map((name) => (name.length === 1 ? name.toUpperCase() : name)).join(" "));
    }
    for (const list of within.querySelectorAll("[data-keys-of]")) {
      const actions = list.dataset.keysOf.split(" ");
      const names = actions.length > 1 ? actions.flatMap((action) => this.#keys[action].slice(0, 1)) : this.#keys[actions[0]];
      const before = list.dataset.with ? [DeskKeys.#cap(list.dataset.with), " "] : [];
      list.replaceChildren(...before, ...names.flatMap((name, index) => (index ? [" ", DeskKeys.#cap(name)] : [DeskKeys.#cap(name)])));
    }
  }
}
