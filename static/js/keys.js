// In a field of the keys page a key press fills in that key. Without this file its name or character can be typed.
"use strict";
(() => {
  const ARROWS = { ArrowLeft: "←", ArrowRight: "→", ArrowUp: "↑", ArrowDown: "↓" };
  const form = document.querySelector("[data-keys-form]");

  function nameOf(event) {
    // With Shift as well: a digit with Shift says "much better", so what it types elsewhere is no key of its own.
    const digit = /^Digit(\d)$/.exec(event.code);
    if (digit) return digit[1];
    if (event.key === " ") return form.dataset.space;
    return event.key.length === 1 ? event.key.toUpperCase() : ARROWS[event.key];
  }

  form?.addEventListener("keydown", (event) => {
    if (!event.target.matches(".key-field") || event.isComposing) return;
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const isEmptied = event.key === "Backspace" || event.key === "Delete";
    const name = isEmptied ? "" : nameOf(event);
    if (name === undefined) return; // Tab, Enter, Escape and the like do what they always do
    event.preventDefault();
    event.target.value = name;
    event.target.select();
  });
})();
