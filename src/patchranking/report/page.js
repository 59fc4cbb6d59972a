// The slider shows what was measured at each keep rate; the filters hide rows of the tables, their heads sort them.
const slider = document.getElementById("rate");
if (slider) {
  const rates = JSON.parse(slider.dataset.rates);
  slider.addEventListener("input", () => {
    const [rate, words] = rates[slider.value];
    document.getElementById("share").textContent = words;
    slider.setAttribute("aria-valuetext", words);
    for (const mask of document.querySelectorAll("[data-views]")) {
      const view = JSON.parse(mask.dataset.views)[rate];
      mask.hidden = !view;
      if (!view) continue;
      const patches = mask.querySelectorAll("rect");
      for (let place = 0; place < patches.length; place++) patches[place].setAttribute("class", view.patches[place]);
      const says = mask.querySelector(".says");
      says.classList.toggle("changed", view.changed);
      says.querySelector("b").textContent = view.prediction;
      says.querySelector("i").textContent = view.cosine;
    }
  });
}

for (const tools of document.querySelectorAll(".tools")) {
  const [words, method] = [tools.querySelector("input"), tools.querySelector("select")];
  const rows = [...document.getElementById(tools.dataset.table).tBodies[0].rows];
  const texts = rows.map(row => row.textContent.toLowerCase().replace(/\s+/g, " "));
  const filter = () => {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    rows.forEach((row, number) => {
      row.hidden = (method.value && row.dataset.method !== method.value)
        || !wanted.every(word => texts[number].includes(word));
    });
    const shown = rows.filter(row => !row.hidden).length;
    tools.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  };
  words.addEventListener("input", filter);
  method.addEventListener("change", filter);
}

for (const button of document.querySelectorAll("thead button")) {
  const head = button.closest("th"), table = button.closest("table"), place = head.cellIndex;
  const value = row => {
    const text = row.cells[place].textContent.trim();
    const number = parseFloat(text.replace("\u2212", "-").replace(/,/g, ""));
    return place && Number.isNaN(number) ? -Infinity : place ? number : text;
  };
  button.addEventListener("click", () => {
    const downwards = head.getAttribute("aria-sort") === (place ? "descending" : "ascending") ? !place : Boolean(place);
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", downwards ? "descending" : "ascending");
    const order = (a, b) => (value(a) > value(b) ? 1 : value(a) < value(b) ? -1 : 0) * (downwards ? -1 : 1);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    table.classList.add("sorted");
  });
}
