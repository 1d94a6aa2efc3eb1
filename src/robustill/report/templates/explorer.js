"use strict";
{
  const STEP = 24;
  const page = document.getElementById("explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const form = page.querySelector("form");
  const list = page.querySelector("ul");
  const count = page.querySelector("[role=status]");
  const more = page.querySelector(".more");
  let matching = [];

  const createElement = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  const selected = (name, fallback = "") => form.elements.namedItem(name)?.value ?? String(fallback ?? "");
  const selectedRuns = () => [selected("first", data.first), selected("second", data.second)];
  const percent = thousandths => `${(thousandths / 10).toFixed(1)}\u00a0%`;

  const isRobust = result => result.outcome === "robust";
  // An image that one of the two runs lacks matches none of the options.
  const robustRuns = (image, first, second) => {
    if (!image.runs[first] || !image.runs[second]) return "unknown";
    const [firstRobust, secondRobust] = [first, second].map(run => isRobust(image.runs[run]));
    if (firstRobust && secondRobust) return "both";
    if (firstRobust) return "first";
    return secondRobust ? "second" : "neither";
  };
  const matches = (image, first, second) => {
    const values = {
      class: image.label,
      bin: image.bin,
      outcome: image.runs[first]?.outcome,
      robust: robustRuns(image, first, second),
    };
    return Object.entries(values).every(([name, value]) => ["", String(value)].includes(selected(name)));
  };

  const picture = (image, base64, alt, caption) => {
    const { width, height } = data.sets[image.set];
    const src = `data:image/png;base64,${base64}`;
    return createElement("figure", {}, createElement("img", { src, width, height, alt }),
      createElement("figcaption", {}, caption));
  };
  const probabilities = (name, top, label) => {
    const head = ["class", "clean", "attacked"].map(text => createElement("th", { scope: "col" }, text));
    const rows = top.map(([k, clean, attacked]) => {
      const title = createElement("th", { scope: "row" }, data.classes[k]);
      if (k === label) title.append(" ", createElement("span", { className: "about" }, "label"));
      const cells = [clean, attacked].map(value => createElement("td", {}, percent(value)));
      return createElement("tr", {}, title, ...cells);
    });
    const caption = createElement("caption", { className: "visually-hidden" }, `Probabilities of ${name}`);
    return createElement("table", { className: "top" }, caption,
      createElement("thead", {}, createElement("tr", {}, ...head)), createElement("tbody", {}, ...rows));
  };
  const prediction = (image, run) => {
    const result = image.runs[run], name = data.runs[run], factor = data.sets[image.set].factor;
    const outcome = isRobust(result) ? "robust" : "lost";
    return createElement("div", { className: "prediction" },
      createElement("p", { className: "heading" }, createElement("span", {}, name),
        createElement("span", { className: `outcome ${outcome}` }, result.outcome)),
      createElement("div", { className: "triple" },
        picture(image, image.clean, `Image ${image.id}, clean`, "clean"),
        picture(image, result.adversarial, `Image ${image.id}, attacked with ${name} as the target`, "attacked"),
        picture(image, result.change, `Change of image ${image.id}, amplified ${factor} times`,
          `change\u00a0×\u00a0${factor}`)),
      probabilities(name, result.top, image.label));
  };
  const card = image => {
    const runs = [...new Set(selectedRuns())].filter(run => image.runs[run]);
    const about = [`image ${image.id}`, ...(image.bin ? [image.bin] : [])].join(", ");
    return createElement("li", { className: "picture", tabIndex: -1 },
      createElement("p", { className: "heading" }, createElement("strong", {}, data.classes[image.label]),
        createElement("span", { className: "about" }, about)),
      ...(runs.length ? runs : Object.keys(image.runs).slice(0, 2)).map(run => prediction(image, run)));
  };

  const updateCount = (shown, total) => {
    const part = shown < matching.length ? `, the first ${shown} shown` : "";
    count.textContent = `${matching.length} of ${total} images${part}`;
    more.hidden = shown >= matching.length;
  };
  const imagesOfSet = () => data.images.filter(image => image.set === Number(selected("set", 0)));
  const update = () => {
    const all = imagesOfSet();
    // Hide the bins that no image of the set belongs to.
    const bins = new Set(all.map(image => image.bin));
    for (const option of form.elements.namedItem("bin")?.options ?? [])
      option.hidden = option.value !== "" && !bins.has(option.value);
    matching = all.filter(image => matches(image, ...selectedRuns()));
    list.replaceChildren(...matching.slice(0, STEP).map(card));
    updateCount(list.children.length, all.length);
  };

  form.addEventListener("change", update);
  form.addEventListener("submit", event => event.preventDefault());
  // The controls have their initial values only after this event.
  form.addEventListener("reset", () => setTimeout(update));
  more.addEventListener("click", () => {
    const before = list.children.length;
    list.append(...matching.slice(before, before + STEP).map(card));
    updateCount(list.children.length, imagesOfSet().length);
    list.children[before].focus();
  });
  page.hidden = false;
  document.getElementById("gallery").hidden = true;
  update();
}
