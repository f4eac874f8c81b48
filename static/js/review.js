// Keys of the reviewer's pages: each presses the button that names it. Without this file the buttons work all the same.
"use strict";
(() => {
  const QUIET_MS = 400; // a key that is still held must not decide on a pair that nobody has read
  const quietUntil = performance.now() + QUIET_MS;
  let isDone = false; // one decision a page

  const isTyping = (element) => element.closest?.("input:not([type=hidden]), textarea, select, [contenteditable]");

  function nameOf(event) {
    // Digits by their place on the keyboard, so that they work on every layout; letters by what they say.
    if (/^(Digit|Numpad)\d$/.test(event.code)) return event.code.replace("Numpad", "Digit");
    return event.key.toLowerCase();
  }

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.repeat || event.isComposing || isTyping(event.target)) return;
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const target = document.querySelector(`[data-keys~="${CSS.escape(nameOf(event))}"]`);
    if (!target || isDone || performance.now() < quietUntil || document.querySelector("[popover]:popover-open")) return;
    event.preventDefault();
    isDone = true;
    target.click();
  });

  document.addEventListener("submit", (event) => {
    if (event.defaultPrevented || !event.target.matches(".verdicts")) return;
    // A second press of a button that is under way would decide twice.
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "true";
  });

  // The browser's way back shows this page as it was left.
  window.addEventListener("pageshow", () => {
    isDone = false;
    for (const form of document.querySelectorAll(".verdicts[data-sent]")) delete form.dataset.sent;
  });
})();
