"use strict";

const token = document.querySelector("meta[name=studio-token]").content;
const byId = (id) => document.getElementById(id);
const page = { corpus: "", offset: 0, search: "" };

/** The JSON answer of the server. Errors are shown in the status line, and thrown. */
async function api(path, options = {}) {
  const headers = { "X-Studio-Token": token, ...options.headers };
  const answer = await fetch(`api/${path}`, { ...options, headers });
  const body = answer.headers.get("content-type")?.includes("json") ? await answer.json() : {};
  if (!answer.ok) {
    const message = body.error ?? `the server answers ${answer.status}`;
    tell(message, true);
    throw new Error(message);
  }
  return body;
}

function tell(message, wrong = false) {
  byId("status").textContent = message;
  byId("status").classList.toggle("wrong", wrong);
}

function cell(row, content) {
  const made = row.insertCell();
  made.append(content ?? "");
  return made;
}

function button(label, act, described = "") {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  if (described) made.setAttribute("aria-label", `${label} ${described}`);
  made.addEventListener("click", () => act().catch(() => {}));
  return made;
}

function heading(row, text) {
  const made = document.createElement("th");
  made.scope = "row";
  made.textContent = text;
  row.append(made);
}

async function showVoices() {
  const rows = await api("voices");
  byId("voices").replaceChildren(...rows.map((voice) => {
    const row = document.createElement("tr");
    heading(row, voice.name);
    cell(row, voice.recipes.join(", "));
    cell(row, voice.corpora.join(", "));
    const actions = cell(row, button("Train", () => start({ voice: voice.name }), voice.name));
    for (const recipe of voice.recipes) {
      actions.append(" ", button("Checkpoints", () => showCheckpoints(recipe), `of ${recipe}`));
    }
    if (voice.model) actions.append(" ", button("Load", () => load(voice.name), voice.name));
    return row;
  }));
}

/** The syntheses of a training at one step, beside the recordings. */
async function showCheckpoints(recipe) {
  const lines = await api(`checkpoints/${recipe}`);
  const steps = [...new Set(lines.map((line) => line.step))].filter(Boolean);
  if (!steps.length) { tell(`${recipe} has no syntheses: train it, with sample_every.`, true); return; }
  const player = (line) => {
    const made = new Audio();
    made.controls = true;
    made.preload = "none";
    made.src = `api/checkpoints/${recipe}/${line.audio}`;
    made.setAttribute("aria-label", `${line.step ? `Step ${line.step}` : "Recording"}: ${line.text}`);
    return made;
  };
  const show = () => {
    const step = Number(byId("step").value);
    const recordings = lines.filter((line) => line.step === 0);
    byId("checkpoints").replaceChildren(...recordings.map((recording) => {
      const row = document.createElement("tr");
      const made = lines.find((line) => line.step === step && line.number === recording.number);
      heading(row, recording.text);
      cell(row, player(recording));
      const last = cell(row, made ? player(made) : "");
      if (made && !made.ended) last.append(" did not end");
      return row;
    }));
  };
  byId("step").replaceChildren(...steps.map((step) => new Option(step, step)));
  byId("step").value = steps.at(-1);
  byId("step").onchange = show;
  show();
  byId("checkpoints-title").textContent = `Checkpoints of ${recipe}`;
  byId("checkpoints-section").hidden = false;
  byId("checkpoints-title").focus();
}

async function load(voice) {
  const headers = { "Content-Type": "application/json" };
  await api("speech", { method: "POST", headers, body: JSON.stringify({ voice }) });
  await showSpeech();
  byId("speech").elements.text.focus();
}

async function showSpeech() {
  const { voice, state, message = "", speakers = [] } = await api("speech");
  byId("speech-section").hidden = state === "none";
  byId("loaded").textContent = voice;
  const words = { starting: "is loading, which takes a minute or two", ready: "is ready", failed: message };
  byId("loaded-state").textContent = words[state] ?? "";
  byId("loaded-state").classList.toggle("wrong", state === "failed");
  const form = byId("speech");
  form.querySelector("button").disabled = state !== "ready";
  const known = [...form.elements.speaker_name.options].map((option) => option.value);
  if (known.join() !== speakers.join()) {
    form.elements.speaker_name.replaceChildren(...speakers.map((name) => new Option(name, name)));
  }
  if (state === "starting") setTimeout(() => showSpeech().catch(() => {}), 2000);
}

byId("speech").addEventListener("submit", (event) => {
  event.preventDefault();
  byId("spoken").src = `api/speech/audio?${new URLSearchParams(new FormData(event.target))}`;
  byId("spoken").play().catch(() => tell("The text cannot be spoken: is the voice ready?", true));
});

byId("spoken").addEventListener("error", () => {  // the answer says why, if it is not audio
  const asked = new URL(byId("spoken").src);
  api(`speech/audio${asked.search}`).catch(() => {});
});

async function showPages() {
  const { files, pages } = await api("pages");
  byId("pages-section").hidden = !pages.length;
  byId("pages").replaceChildren(...pages.map(({ title, path }) => {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = `${location.protocol}//${location.hostname}${files}${files.endsWith("/") ? "" : "/"}${path}`;
    link.textContent = title;
    item.append(link);
    return item;
  }));
}

/** Start a run: of a voice or of a corpus. */
async function start(what) {
  const headers = { "Content-Type": "application/json" };
  await api("runs", { method: "POST", headers, body: JSON.stringify(what) });
  tell(`Started: ${Object.values(what)[0]}.`);
  await showRuns();
}

let watched = false;  // a command ran when the runs were shown last

async function showRuns() {
  const { command, runs, ui } = await api("runs");
  byId("ui").hidden = !ui;
  if (ui) byId("ui").href = ui;
  byId("command").hidden = !command.title;
  if (command.title) showCommand(command);
  byId("runs").replaceChildren(...runs.map((run) => {
    const row = document.createElement("tr");
    const when = new Date(1000 * run.created).toLocaleString();
    const link = document.createElement("a");
    if (ui) link.href = `${ui}/runs/${run.id}`;
    link.textContent = when;
    cell(row, link);
    cell(row, run.job);
    cell(row, run.corpus);
    cell(row, run.status);
    return row;
  }));
}

function showCommand(command) {
  const running = command.status === null;
  const canceled = [130, -2].includes(command.status);  // as a shell and as Python report SIGINT
  const ended = command.status === 0 ? "is done" : canceled ? "was canceled" : `failed with status ${command.status}`;
  byId("command-title").textContent = command.title;
  byId("command-state").textContent = running ? "is running" : ended;
  byId("cancel").hidden = !running;
  byId("progress-label").hidden = !command.progress?.total;
  if (command.progress?.total) {
    byId("progress-text").textContent = `${command.progress.what}: ${command.progress.text}`;
    byId("progress").max = command.progress.total;
    byId("progress").value = command.progress.done;
  }
  const lines = byId("lines");
  if (lines.textContent !== command.lines) {
    lines.textContent = command.lines;
    lines.scrollTop = lines.scrollHeight;
  }
  if (watched && !running) {
    tell(`${command.title} ${ended}.`, command.status !== 0 && !canceled);
    Promise.all([showCorpora(), showVoices(), showPages(), page.corpus && showClips()]).catch(() => {});
  }
  watched = running;
}

async function watch() {
  if (!document.hidden) await showRuns().catch(() => {});
  setTimeout(watch, 2000);
}

async function showCorpora() {
  const rows = await api("corpora");
  byId("corpora").replaceChildren(...rows.map((corpus) => {
    const row = document.createElement("tr");
    heading(row, corpus.name);
    const made = corpus.kept !== null;
    cell(row, corpus.language);
    cell(row, made ? String(corpus.kept) : "not read yet");
    cell(row, made ? String(corpus.rejected) : "");
    cell(row, made ? corpus.hours.toFixed(2) : "");
    cell(row, corpus.consent);
    const actions = cell(row);
    actions.append(button("Read", () => start({ corpus: corpus.name }), corpus.name), " ");
    if (made) actions.append(button("Clips", () => openClips(corpus.name), `of ${corpus.name}`));
    return row;
  }));
}

async function openClips(corpus) {
  Object.assign(page, { corpus, offset: 0, search: "" });
  byId("clips-filter").reset();
  await showClips();
  byId("clips-title").focus();
}

async function showClips() {
  const query = new URLSearchParams({ offset: page.offset, search: page.search });
  const found = await api(`corpora/${page.corpus}/clips?${query}`);
  byId("clips-title").textContent = `Clips of ${page.corpus}, the most suspect first`;
  byId("clips-count").textContent = `${found.total} clips, ${found.suspect} suspect, ${found.corrected} corrected`;
  byId("clips-pending").hidden = !found.pending;
  byId("clips").replaceChildren(...found.clips.map(clipItem));
  byId("clips-before").disabled = page.offset === 0;
  byId("clips-after").disabled = page.offset + found.clips.length >= found.total;
  page.size = found.size;
  byId("clips-section").hidden = false;
}

function clipItem(clip) {
  const item = byId("clip").content.cloneNode(true).firstElementChild;
  const files = `api/corpora/${page.corpus}/clips/${clip.id}`;
  item.dataset.id = clip.id;
  item.querySelector("img").src = `${files}.svg`;
  const audio = item.querySelector("audio");
  audio.src = `${files}.flac`;
  audio.setAttribute("aria-label", `Recording of: ${clip.text}`);
  item.querySelector(".signs").textContent = clip.signs.join("; ");
  item.classList.toggle("dropped", clip.dropped);
  const text = item.querySelector("textarea");
  text.value = clip.text;
  text.setAttribute("aria-label", `Transcript of ${clip.id}`);
  text.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !event.ctrlKey) return;
    event.preventDefault();
    const next = item.nextElementSibling?.querySelector("textarea");
    correct(item, { text: text.value }).then(() => next?.focus()).catch(() => {});
  });
  const changes = { save: () => ({ text: text.value }), drop: () => ({ drop: true }), restore: () => ({}) };
  for (const [name, change] of Object.entries(changes)) {
    const pressed = item.querySelector(`.${name}`);
    pressed.setAttribute("aria-label", `${pressed.textContent}: ${clip.text}`);
    pressed.addEventListener("click", () => correct(item, change()).catch(() => {}));
  }
  item.querySelector(".drop").disabled = clip.dropped;
  item.querySelector(".restore").disabled = !clip.corrected;
  item.querySelector(".state").textContent = clip.dropped ? "dropped" : clip.corrected ? "corrected" : "";
  item.querySelector(".heard").textContent = clip.heard ? `ASR: ${clip.heard}` : "";
  const facts = [`${clip.duration.toFixed(1)} s`, clip.speaker, clip.id];
  if (clip.transcript !== clip.text) facts.unshift(`read as: ${clip.transcript}`);
  item.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
  return item;
}

/** Store a correction of a clip, and show the clip as it is now. */
async function correct(item, change) {
  const body = JSON.stringify({ id: item.dataset.id, ...change });
  const headers = { "Content-Type": "application/json" };
  const { clip, pending } = await api(`corpora/${page.corpus}/corrections`, { method: "POST", headers, body });
  const focused = [...document.activeElement?.classList ?? []][0];
  const inside = item.contains(document.activeElement);
  const shown = clipItem(clip);
  item.replaceWith(shown);
  byId("clips-pending").hidden = !pending;
  if (inside) (shown.querySelector(`.${focused || "none"}:enabled`) ?? shown.querySelector("textarea")).focus();
  tell(`${clip.dropped ? "Dropped" : clip.corrected ? "Corrected" : "As in the source"}: ${clip.text}`);
}

byId("clips-filter").addEventListener("submit", (event) => {
  event.preventDefault();
  Object.assign(page, { offset: 0, search: new FormData(event.target).get("search") });
  showClips().catch(() => {});
});
byId("clips-before").addEventListener("click", () => {
  page.offset = Math.max(0, page.offset - page.size);
  showClips().catch(() => {});
});
byId("clips-after").addEventListener("click", () => {
  page.offset += page.size;
  showClips().catch(() => {});
});
document.addEventListener("play", (event) => {
  for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
}, true);

let chosen = [];  // { path, file } of the recordings to add

function choose(files) {
  const shown = files.filter(({ path }) => !path.split("/").some((part) => part.startsWith(".")));
  const top = new Set(shown.map(({ path }) => path.split("/")[0]));
  const inFolder = top.size === 1 && shown.every(({ path }) => path.includes("/"));
  chosen = inFolder ? shown.map(({ path, file }) => ({ path: path.slice(path.indexOf("/") + 1), file })) : shown;
  byId("chosen").textContent = chosen.length ? `${chosen.length} files chosen.` : "No files chosen.";
  const name = byId("add").elements.name;
  if (inFolder && !name.value) name.value = [...top][0].toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_+|_+$/g, "");
}

/** The files below a dropped file or folder. */
async function filesOf(entry) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return [{ path: entry.fullPath.slice(1), file }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {  // a reader gives some entries at a time
    const some = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!some.length) break;
    found.push(...some);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}

byId("drop").addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
byId("drop").addEventListener("dragleave", () => byId("drop").classList.remove("over"));
byId("drop").addEventListener("drop", async (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  choose((await Promise.all(entries.map(filesOf))).flat());
});
for (const id of ["files", "folder"]) {
  byId(id).addEventListener("change", (event) => {
    choose([...event.target.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
  });
}
byId("add").addEventListener("change", () => {
  byId("person").hidden = byId("add").elements.consent.value !== "person";
});
byId("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const values = Object.fromEntries(new FormData(form));
  if (!chosen.length) { tell("Choose recordings first.", true); return; }
  const bar = byId("uploaded");
  const pressed = form.querySelector("button:not([type])");
  pressed.disabled = true;
  bar.hidden = false;
  bar.max = chosen.length;
  try {
    const skipped = await uploadAll(values.name, bar);
    const headers = { "Content-Type": "application/json" };
    const added = await api("corpora", { method: "POST", headers, body: JSON.stringify(values) });
    const aside = Object.entries(added.set_aside).map(([reason, count]) => `${count} set aside: ${reason}`);
    const notes = skipped.length ? [...aside, `${skipped.length} files are neither audio nor texts`] : aside;
    tell([`Added ${added.corpus} with ${added.entries} entries (layout ${added.reader})`, ...notes].join("; ") + ".");
    form.reset();
    byId("person").hidden = true;
    choose([]);
    await Promise.all([showCorpora(), showVoices()]);
  } catch { /* the status line has the message */ } finally {
    pressed.disabled = false;
    bar.hidden = true;
  }
});

/** Store the chosen files. Returns the paths of those that no corpus uses. */
async function uploadAll(name, bar) {
  await api(`uploads/${encodeURIComponent(name)}`, { method: "DELETE" });
  const usable = new RegExp(byId("add").dataset.suffixes, "i");
  for (const [number, { path, file }] of chosen.entries()) {
    bar.value = number;
    if (!usable.test(path)) continue;
    const url = `uploads/${encodeURIComponent(name)}/${path.split("/").map(encodeURIComponent).join("/")}`;
    await api(url, { method: "PUT", body: file });
  }
  return chosen.filter(({ path }) => !usable.test(path));
}

byId("cancel").addEventListener("click", () => api("runs", { method: "DELETE" }).then(showRuns).catch(() => {}));
byId("apply").addEventListener("click", () => start({ corpus: page.corpus }).catch(() => {}));

showCorpora().catch(() => {});
showVoices().catch(() => {});
showPages().catch(() => {});
showSpeech().catch(() => {});
watch();
