// Says on every other page that answers wait on this device: they are sent by the annotate page of their project alone.
"use strict";
(() => {
  const place = document.getElementById("unsent");
  const { person, one, many, link, address, signIn } = place.dataset;
  const here = document.getElementById("annotate")?.dataset.project; // it has a line of its own

  function lineOf([project, count]) {
    const line = document.createElement("p");
    const text = count === 1 ? one : many.replace("COUNT", count);
    line.className = "note";
    line.append(text.replace("PROJECT", project), " ", person ? linkTo(project) : signIn);
    return line;
  }

  function linkTo(project) {
    const element = document.createElement("a");
    Object.assign(element, { href: address.replace("PROJECT", project), textContent: link });
    return element;
  }

  function say() {
    const left = Kept.countLeft(person).filter(([project]) => project !== here);
    place.replaceChildren(...left.map(lineOf));
  }

  addEventListener("storage", say); // another tab has sent some, or keeps more
  setInterval(say, Kept.GRACE_MS);
  say();
})();
