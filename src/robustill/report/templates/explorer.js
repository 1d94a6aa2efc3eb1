"use strict";
{
  const STEP = 24;
  const page = document.getElementById("explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const form = page.querySelector("form");
  const list = page.querySelector("ul");
  const count = page.querySelector("[role=status]");
  const more = page.querySelector(".more");
  let found = [];

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const chosen = (name, otherwise = "") => form.elements.namedItem(name)?.value ?? String(otherwise ?? "");
  const pair = () => [chosen("first", data.first), chosen("second", data.second)];
  const percent = thousandths => `${(thousandths / 10).toFixed(1)}\u00a0%`;

  // Of an image that only one of them was asked about, no answer fits.
  const whoIsRight = (image, first, second) => {
    if (!image.runs[first] || !image.runs[second]) return "unknown";
    const [a, b] = [first, second].map(run => image.runs[run].outcome === "held");
    return a ? (b ? "both" : "first") : b ? "second" : "neither";
  };
  const fits = (image, first, second) => {
    const is = {
      class: image.label,
      bin: image.bin,
      outcome: image.runs[first]?.outcome,
      who: whoIsRight(image, first, second),
    };
    return Object.entries(is).every(([name, value]) => ["", String(value)].includes(chosen(name)));
  };

  const picture = (image, base64, alt, caption) => {
    const { width, height } = data.sets[image.set];
    const src = `data:image/png;base64,${base64}`;
    return make("figure", {}, make("img", { src, width, height, alt }), make("figcaption", {}, caption));
  };
  const probabilities = (name, top, label) => {
    const head = ["class", "clean", "attacked"].map(text => make("th", { scope: "col" }, text));
    const rows = top.map(([k, clean, attacked]) => {
      const title = make("th", { scope: "row" }, data.classes[k]);
      if (k === label) title.append(" ", make("span", { className: "about" }, "label"));
      return make("tr", {}, title, make("td", {}, percent(clean)), make("td", {}, percent(attacked)));
    });
    const caption = make("caption", { className: "unseen" }, `Probabilities of ${name}`);
    return make("table", { className: "top" }, caption,
      make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  };
  const opinion = (image, run) => {
    const said = image.runs[run], name = data.runs[run], factor = data.sets[image.set].factor;
    const held = said.outcome === "held" ? "held" : "lost";
    return make("div", { className: "opinion" },
      make("p", { className: "truth" }, make("span", {}, name),
        make("span", { className: `outcome ${held}` }, said.outcome)),
      make("div", { className: "triple" },
        picture(image, image.clean, `Image ${image.id}, clean`, "clean"),
        picture(image, said.adversarial, `Image ${image.id}, attacked against ${name}`, "attacked"),
        picture(image, said.change, `Its change, amplified ${factor} times`, `change\u00a0×\u00a0${factor}`)),
      probabilities(name, said.top, image.label));
  };
  const card = image => {
    const asked = [...new Set(pair())].filter(run => image.runs[run]);
    const about = [`image ${image.id}`, ...(image.bin ? [image.bin] : [])].join(", ");
    return make("li", { className: "picture", tabIndex: -1 },
      make("p", { className: "truth" }, make("strong", {}, data.classes[image.label]),
        make("span", { className: "about" }, about)),
      ...(asked.length ? asked : Object.keys(image.runs).slice(0, 2)).map(run => opinion(image, run)));
  };

  const tell = (shown, total) => {
    const part = shown < found.length ? `, the first ${shown} shown` : "";
    count.textContent = `${found.length} of ${total} images${part}`;
    more.hidden = shown >= found.length;
  };
  const inSet = () => data.images.filter(image => image.set === Number(chosen("set", 0)));
  const update = () => {
    const all = inSet();
    // What no image of the set has is no choice.
    const known = new Set(all.map(image => image.bin));
    for (const option of form.elements.namedItem("bin")?.options ?? [])
      option.hidden = option.value !== "" && !known.has(option.value);
    found = all.filter(image => fits(image, ...pair()));
    list.replaceChildren(...found.slice(0, STEP).map(card));
    tell(list.children.length, all.length);
  };

  form.addEventListener("change", update);
  form.addEventListener("submit", event => event.preventDefault());
  // The controls have their first values only after the event.
  form.addEventListener("reset", () => setTimeout(update));
  more.addEventListener("click", () => {
    const before = list.children.length;
    list.append(...found.slice(before, before + STEP).map(card));
    tell(list.children.length, inSet().length);
    list.children[before].focus();
  });
  page.hidden = false;
  document.getElementById("dozen").hidden = true;
  update();
}
