"use strict";
document.documentElement.classList.add("js");

for (const box of document.querySelectorAll(".player")) {
  const audio = box.querySelector("audio");
  const seekBar = box.querySelector(".seek");
  const button = box.querySelector("button");
  const seconds = () => audio.duration || Number(box.dataset.seconds);  // no duration before the file is loaded
  const show = () => seekBar.style.setProperty("--played", `${100 * audio.currentTime / seconds()}%`);
  const follow = () => { show(); if (!audio.paused) requestAnimationFrame(follow); };
  const seek = (time) => { audio.currentTime = Math.min(seconds(), Math.max(0, time)); show(); };
  audio.controls = false;
  box.classList.add("ready");
  button.addEventListener("click", () => audio.paused ? audio.play() : audio.pause());
  button.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 0.5, ArrowLeft: -0.5 }[event.key];
    if (step) { seek(audio.currentTime + step); event.preventDefault(); }
  });
  seekBar.addEventListener("click", (event) => {
    const edge = seekBar.getBoundingClientRect();
    seek(seconds() * (event.clientX - edge.left) / edge.width);
    audio.play();
  });
  audio.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
    box.classList.add("playing");
    follow();
  });
  audio.addEventListener("pause", () => box.classList.remove("playing"));
  audio.addEventListener("ended", () => { box.classList.remove("playing"); audio.currentTime = 0; show(); });
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column];
    if (cell.dataset.value === undefined) return cell.textContent.trim();
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b);
  for (const [column, head] of heads.entries()) {
    head.querySelector("button")?.addEventListener("click", () => {
      const first = head.dataset.first ?? "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.ariaSort === first ? other : first;
      for (const each of heads) each.ariaSort = each === head ? order : null;
      const sign = order === "ascending" ? 1 : -1;
      body.append(...[...body.rows].sort((left, right) => {
        const a = value(left, column), b = value(right, column);
        if (a === null || b === null) return (a === null) - (b === null);  // rows without a value come last
        return sign * compare(a, b);
      }));
    });
  }
}

for (const form of document.querySelectorAll("form.filter")) {
  const list = document.getElementById(form.dataset.table);
  const rows = [...list.querySelectorAll("[data-text]")];
  const groups = [...list.querySelectorAll("[data-group]")];
  const count = form.querySelector("output");
  const apply = () => {
    const words = form.elements.words.value.toLowerCase();
    const kind = form.elements.kind.value;
    const wrong = form.elements.wrong.checked;
    for (const row of rows) {
      row.hidden = !(row.dataset.text.includes(words) && (!kind || row.dataset.kind === kind)
        && (!wrong || row.dataset.wrong));
    }
    for (const group of groups) {
      group.classList.toggle("empty", rows.every((row) => row.hidden || !group.contains(row)));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    count.textContent = `${shown} of ${rows.length} ${form.dataset.what}`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  apply();
}

if (location.protocol.startsWith("http")) {  // make ui serves the files at the port after that of the UI
  for (const link of document.querySelectorAll("a[data-asset]")) {
    const partition = link.dataset.partition ? `?partition=${encodeURIComponent(link.dataset.partition)}` : "";
    link.href = `${location.protocol}//${location.hostname}:${Number(location.port) - 1}/assets/${link.dataset.asset}${partition}`;
    link.hidden = false;
  }
}

const facts = document.querySelectorAll("[data-fact]");
if (facts.length && location.protocol !== "file:") {  // facts of the machine are not in the page itself
  fetch("manifest.json").then((answer) => answer.json()).then((manifest) => {
    const metrics = manifest.facts.metrics;
    for (const tile of facts) {
      const [value, low, high] = ["", "_low", "_high"].map((end) => metrics[tile.dataset.fact + end]);
      if (value === undefined) continue;
      tile.querySelector(".figure").textContent = `${value.toFixed(2)}${tile.dataset.unit}`;
      tile.querySelector(".note").textContent = `95 % interval ${low.toFixed(2)} to ${high.toFixed(2)}${tile.dataset.unit}`;
      tile.hidden = false;
    }
  }).catch(() => {});  // a folder without a manifest is no published report
}
