// The page: adds photos and shows a card for each. An engine makes the predictions, on the server or in the browser.
//
// engine.loadModelInfo()            the classes, the accuracy, the threshold and the candidates' coverage; or throws a Problem
// engine.predict(file, showStatus)  { label, confidence, probabilities, status, candidates }, or throws a Problem; may call
//                                   showStatus(text)
// engine.note                       where photos go
// engine.concurrency                how many photos it classifies at a time
// engine.measuresDrift              whether the model info changes with the photos that it has seen

import { Card, percent, WAITING } from "./cards.js";
import { listen } from "./photos.js";
import { download, summarise, toTable } from "./results.js";

export class Problem extends Error {
  // What is wrong, and what to try.
  constructor(what, advice = "") {
    super(what);
    this.advice = advice;
  }
}

const MAX_CARDS = 500; // thousands of cards make a browser slow
const MAX_LARGE_CARDS = 5; // with more, the list becomes compact unless the user chose
const TITLE = document.title;
const BLOCKED = "Not classified: see above";
const getElement = (id) => document.getElementById(id);
const cards = new Set();
const queue = [];
let running = 0;
let modelInfo = null;
let isBlocked = false;
let isCompact = null; // null until the user chooses

export async function start(engine) {
  getElement("note").textContent = engine.note;
  listen((files) => addPhotos(files, engine));
  getElement("clear").addEventListener("click", clear);
  getElement("layout").addEventListener("click", () => {
    isCompact = !getElement("answers").classList.contains("compact");
    updateResults();
  });
  getElement("download").addEventListener("click", () => download(toTable(listCards(), modelInfo?.classes ?? []), "predictions.csv"));
  getElement("retry").addEventListener("click", () => {
    showState("Loading …", false);
    prepare(engine);
  });
  await prepare(engine);
}

async function prepare(engine) {
  try {
    modelInfo = await engine.loadModelInfo();
  } catch (problem) {
    showState(formatProblem(problem), true);
    announce(formatProblem(problem));
    return;
  }
  document.body.dataset.ready = "yes";
  document.title = modelInfo.name ? `${modelInfo.name} · ${TITLE}` : TITLE;
  getElement("name").textContent = modelInfo.name;
  getElement("name").hidden = !modelInfo.name;
  getElement("about").textContent = describeModel(modelInfo);
  showSamples(modelInfo.samples ?? {});
  getElement("footnote").textContent = describeThreshold(modelInfo);
  showDrift(modelInfo);
  startNext(engine);
}

function showDrift({ has_drifted: hasDrifted, drift }) {
  const text = hasDrifted ? describeDrift(drift) : "";
  if (hasDrifted && getElement("drift").hidden) announce(text);
  getElement("drift").textContent = text;
  getElement("drift").hidden = !hasDrifted;
}

// A page may stay open for days, so the note follows the photos.
async function updateDrift(engine) {
  try {
    showDrift(await engine.loadModelInfo());
  } catch {
    // The next photo reports a server that cannot be reached.
  }
}

// Only a server with a file that contains training photos has samples. Each is a JPEG in base64.
function showSamples(samples) {
  const items = Object.entries(samples).map(([name, text]) => {
    const image = document.createElement("img");
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    image.src = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
    image.alt = "";
    const item = document.createElement("li");
    item.append(image, name);
    return item;
  });
  getElement("samples").replaceChildren(...items);
  getElement("samples").hidden = !items.length;
}

// Shows why photos wait. With an error they wait until the user tries again.
function showState(text, isError) {
  isBlocked = isError;
  getElement("about").textContent = text;
  getElement("about").classList.toggle("error", isBlocked);
  if (document.activeElement === getElement("retry")) getElement("choose").focus(); // a hidden button would lose the focus
  getElement("retry").hidden = !isBlocked;
  for (const card of queue) card.showStatus(isBlocked ? BLOCKED : WAITING);
}

function addPhotos(files, engine) {
  const firstElement = getElement("answers").firstChild;
  const accepted = files.slice(0, MAX_CARDS - cards.size);
  for (const file of accepted) {
    const card = new Card(file, () => remove(card));
    cards.add(card);
    getElement("answers").insertBefore(card.element, firstElement);
    queue.push(card);
    if (isBlocked) card.showStatus(BLOCKED);
  }
  updateResults();
  showLeftOut(files.length - accepted.length, files.length);
  startNext(engine);
}

// The cards in the order of the page; `cards` has them in the order of their arrival.
function listCards() {
  const places = new Map([...getElement("answers").children].map((element, index) => [element, index]));
  return [...cards].sort((first, second) => places.get(first.element) - places.get(second.element));
}

function updateResults() {
  const compact = isCompact ?? cards.size > MAX_LARGE_CARDS;
  getElement("results").hidden = !cards.size;
  getElement("summary").textContent = cards.size > 1 ? summarise(cards) : "";
  getElement("answers").classList.toggle("compact", compact);
  getElement("layout").textContent = compact ? "Show details" : "Compact list";
  getElement("layout").hidden = cards.size <= MAX_LARGE_CARDS;
}

function showLeftOut(count, total) {
  getElement("left-out").hidden = !count;
  if (!count) return;
  getElement("left-out").textContent = `Left out: ${count} of ${total}. The page shows at most ${MAX_CARDS} photos; “Clear all” makes room.`;
  announce(getElement("left-out").textContent);
}

function startNext(engine) {
  while (modelInfo && running < engine.concurrency && queue.length) {
    const card = queue.shift();
    running += 1;
    predict(card, engine).finally(() => {
      running -= 1;
      startNext(engine);
      if (engine.measuresDrift && !running) updateDrift(engine);
    });
  }
}

async function predict(card, engine) {
  const thumbnail = card.drawThumbnail();
  try {
    await checkFile(card.file);
    const prediction = await engine.predict(card.file, (text) => card.showStatus(text));
    announce(card.showPrediction(prediction), card);
  } catch (problem) {
    announce(card.showError(capitalise(problem.message), problem instanceof Problem ? problem.advice : ""), card);
  }
  updateResults();
  await thumbnail;
}

async function checkFile(file) {
  if (file.error) throw new Problem(file.error);
  if (file.size) return;
  // Browsers report size 0 for a file that no longer exists.
  const content = await file.arrayBuffer().catch(() => null);
  throw content ? new Problem("This file is empty.") : new Problem("This file cannot be read.", "choosing it again");
}

function remove(card) {
  card.element.remove();
  cards.delete(card);
  const index = queue.indexOf(card);
  if (index >= 0) queue.splice(index, 1);
  updateResults();
  showLeftOut(0);
  (cards.size ? getElement("results-title") : getElement("choose")).focus();
}

function clear() {
  [...cards].forEach(remove);
  announce("No photos.");
}

// Announces text to screen readers. A live region that changes twice in a row is read once, so texts are collected and
// written together. Texts about cards that were removed meanwhile are dropped.
let announcements = [];
function announce(text, card = null) {
  if (card && !cards.has(card)) return;
  announcements.push({ text, card });
  if (announcements.length > 1) return;
  setTimeout(() => {
    const current = announcements.filter((announcement) => !announcement.card || cards.has(announcement.card));
    getElement("announcements").textContent = current.map((announcement) => announcement.text).join(" ");
    announcements = [];
  }, 150);
}

function describeModel({ classes, accuracy, accuracy_interval: interval, photos, note }) {
  const shown = classes.length > 12 ? [...classes.slice(0, 11), `${classes.length - 11} more`] : classes;
  const summary = `Distinguishes ${joinWords(shown)}.`;
  if (accuracy === null) return summary;
  const range = interval ? ` (95% interval ${percent(interval[0])} to ${percent(interval[1])})` : "";
  const subject = note ? "The scored network" : "It";
  const score = `${subject} classified ${percent(accuracy)} of ${photos} unseen photos correctly${range}.`;
  return [summary, score, note].filter(Boolean).join(" ");
}

// Only a server has seen photos before.
function describeDrift({ photos, median_familiarity: median }) {
  return `The last ${photos} photos differ from the training photos: their median familiarity is ${median.toFixed(2)} instead of 0.50. Predictions may be wrong more often than the score says.`;
}

function describeThreshold({ threshold, candidates, familiarity_threshold: familiarityThreshold }) {
  const unsure = threshold ? `It answers “not sure” if no class reaches ${percent(threshold)}. ` : "";
  const coverage = candidates ? `For ${percent(candidates.coverage)} of photos like those it learned from, the true class is among the classes it names. ` : "";
  const unknown = familiarityThreshold === null ? "" : "It recognises most photos of very different things as unlike the training photos. ";
  return `${unsure}${coverage}${unknown}A photo of anything else may still get one of these classes.`;
}

const joinWords = (words) => (words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
const capitalise = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const formatProblem = (problem) => [`${capitalise(problem.message).replace(/\.$/, "")}.`, problem.advice && `Try: ${problem.advice}`].filter(Boolean).join(" ");
