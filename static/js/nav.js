// Where the project's pages do not fit beside each other, the one that is open is scrolled to.
"use strict";
(() => {
  const nav = document.querySelector(".project-nav");
  const here = nav?.querySelector("[aria-current]");
  if (here) nav.scrollLeft = here.offsetLeft - nav.offsetLeft - (nav.clientWidth - here.offsetWidth) / 2;
})();
