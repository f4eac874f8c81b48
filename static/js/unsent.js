// Says on every other page that answers wait on this device: they are sent by the annotate page of their project alone.
"use strict";
(() => {
  const place = document.getElementById("unsent");
  const { person, one, many, link, address, signIn } = place.dataset;
  const here = document.getElementById("annotate")?.dataset.project; // it has a line of its own

  function lineOf(count, what) {
    const line = document.createElement("p");
    line.className = "note";
    line.append(count === 1 ? one : many.replace("COUNT", count), " ", what);
    return line;
  }

  function linkTo(project) {
    const element = document.createElement("a");
    Object.assign(element, { href: address.replace("PROJECT", project), textContent: link.replace("PROJECT", project) });
    return element;
  }

  // Whoever is not signed in learns that there are some, and not whose or what.
  function lines() {
    const left = Kept.countLeft(person);
    if (person) return left.filter(([project]) => project !== here).map(([project, count]) => lineOf(count, linkTo(project)));
    const count = left.reduce((sum, [, more]) => sum + more, 0);
    return count ? [lineOf(count, signIn)] : [];
  }

  const say = () => place.replaceChildren(...lines());

  addEventListener("storage", say); // another tab has sent some, or keeps more
  setInterval(say, Kept.GRACE_MS);
  say();
})();
