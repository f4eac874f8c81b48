// Keys of the qualification set: an answer, and Enter for the next comparison. Without this file its buttons still work.
"use strict";
(() => {
  const isTyping = (element) => element.closest?.("input:not([type=hidden]), textarea, select, [contenteditable]");
  let isSent = false; // one answer to a comparison

  function nameOf(event) {
    // Digits by their place on the keyboard, so that they work on every layout; letters by what they say.
    const digit = /^(?:Digit|Numpad)(\d)$/.exec(event.code);
    if (digit) return digit[1];
    if (event.key === " ") return "space";
    return event.key.length === 1 ? event.key.toLowerCase() : event.key;
  }

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.repeat || event.isComposing || isTyping(event.target)) return;
    if (event.altKey || event.ctrlKey || event.metaKey || document.querySelector("[popover]:popover-open")) return;
    const name = nameOf(event);
    const onControl = event.target.closest?.("a, button, summary");
    const next = document.querySelector("[data-next]");
    if (next && name === "Enter" && !onControl) return next.click();
    // What has the focus keeps Space and Enter; the prompt keeps its arrows.
    const scrolls = name.startsWith("Arrow") && event.target.closest?.("[tabindex='0']");
    if (scrolls || (onControl && name === "space")) return;
    const button = document.querySelector(`#desk button[data-keys~="${CSS.escape(name)}"]`);
    if (!button) return;
    event.preventDefault();
    if (!isSent) button.click();
  });

  document.addEventListener("submit", (event) => {
    if (!event.target.closest("#desk")) return;
    if (isSent) event.preventDefault();
    isSent = true;
  });

  // A long conversation opens at its last turn.
  const last = document.querySelector(".turn.is-last");
  if (last?.previousElementSibling) last.parentElement.scrollTop = last.offsetTop - last.parentElement.offsetTop;

  // A page that comes back from the browser's memory can be answered again; the server counts the first answer.
  window.addEventListener("pageshow", () => {
    isSent = false;
  });
})();
