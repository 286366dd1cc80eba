// The page: photos come in, cards come out. What looks at a photo is an engine: the server's, or one in the browser.
//
// engine.facts()           what the classifier tells apart, and how well; or a Problem
// engine.look(file, wait)  { label, confidence, probabilities, status } or a Problem; wait(words) while it has to
// engine.note              where photos go
// engine.side_by_side      how many photos it looks at at a time

import { Card, percent, WAITING } from "./cards.js";
import { listen } from "./photos.js";

export class Problem extends Error {
  // What is wrong, and what to try.
  constructor(what, advice = "") {
    super(what);
    this.advice = advice;
  }
}

const MOST = 500; // cards: with thousands of them a browser grows slow, and nobody looks at so many
const STUCK = "Not looked at: see above";
const at = (name) => document.getElementById(name);
const cards = new Set();
const todo = [];
let running = 0;
let facts = null;
let stuck = false;

export async function start(engine) {
  at("note").textContent = engine.note;
  listen((files) => take(files, engine));
  at("clear").addEventListener("click", clear);
  at("again").addEventListener("click", () => {
    show("Getting ready …", false);
    prepare(engine);
  });
  await prepare(engine);
}

async function prepare(engine) {
  try {
    facts = await engine.facts();
  } catch (problem) {
    show(sentence(problem), true);
    say(sentence(problem));
    return;
  }
  document.body.dataset.ready = "yes";
  at("about").textContent = told(facts);
  at("foot").textContent = footnote(facts);
  next(engine);
}

// What keeps photos waiting, and whether it will go on by itself.
function show(words, trouble) {
  stuck = trouble;
  at("about").textContent = words;
  at("about").classList.toggle("trouble", stuck);
  if (document.activeElement === at("again")) at("choose").focus(); // else the keyboard would be nowhere
  at("again").hidden = !stuck;
  for (const card of todo) card.wait(stuck ? STUCK : WAITING);
}

function take(files, engine) {
  const first = at("answers").firstChild;
  const taken = files.slice(0, MOST - cards.size);
  for (const file of taken) {
    const card = new Card(file, () => remove(card));
    cards.add(card);
    at("answers").insertBefore(card.element, first);
    todo.push(card);
    if (stuck) card.wait(STUCK);
  }
  at("results").hidden = !cards.size;
  leave(files.length - taken.length, files.length);
  next(engine);
}

function leave(out, all) {
  at("left-out").hidden = !out;
  if (!out) return;
  at("left-out").textContent = `Left out: ${out} of ${all}. There is room for ${MOST} photos; “Clear all” makes room for others.`;
  say(at("left-out").textContent);
}

function next(engine) {
  while (facts && running < engine.side_by_side && todo.length) {
    const card = todo.shift();
    running += 1;
    answer(card, engine).finally(() => {
      running -= 1;
      next(engine);
    });
  }
}

async function answer(card, engine) {
  const drawn = card.draw();
  try {
    await check(card.file);
    const said = await engine.look(card.file, (words) => card.wait(words));
    say(card.show(said, facts.threshold), card);
  } catch (problem) {
    say(card.fail(capital(problem.message), problem instanceof Problem ? problem.advice : ""), card);
  }
  await drawn;
}

async function check(file) {
  if (file.trouble) throw new Problem(file.trouble);
  if (file.size) return;
  // Of a file that is gone a browser says that it has no bytes.
  const there = await file.arrayBuffer().catch(() => null);
  throw there ? new Problem("This file is empty.") : new Problem("This file cannot be read.", "choosing it once more");
}

function remove(card) {
  card.element.remove();
  cards.delete(card);
  const place = todo.indexOf(card);
  if (place >= 0) todo.splice(place, 1);
  at("results").hidden = !cards.size;
  leave(0);
  (cards.size ? at("results-title") : at("choose")).focus();
}

function clear() {
  [...cards].forEach(remove);
  say("No photos.");
}

// Lines that come together are read out together: a live region that is written twice at once is heard once.
// What is said of a card that was removed meanwhile is said of nothing that can be seen.
let lines = [];
function say(words, card = null) {
  if (card && !cards.has(card)) return;
  lines.push({ words, card });
  if (lines.length > 1) return;
  setTimeout(() => {
    at("said").textContent = lines.filter((line) => !line.card || cards.has(line.card)).map((line) => line.words).join(" ");
    lines = [];
  }, 150);
}

function told({ classes, accuracy, accuracy_interval: interval, photos, note }) {
  const shown = classes.length > 12 ? [...classes.slice(0, 11), `${classes.length - 11} more`] : classes;
  const apart = `Tells apart ${listed(shown)}.`;
  if (accuracy === null) return apart;
  const within = interval ? ` (between ${percent(interval[0])} and ${percent(interval[1])})` : "";
  const who = note ? "the network that was scored" : "it";
  const score = `On ${photos} photos that ${who} had never seen, it was right in ${percent(accuracy)}${within}.`;
  return [apart, score, note].filter(Boolean).join(" ");
}

function footnote({ threshold }) {
  const unsure = threshold ? `It says “not sure” where no class reaches ${percent(threshold)}. ` : "";
  return `${unsure}A photo of something else still gets the class that it is most like.`;
}

const listed = (words) => (words.length < 2 ? words.join() : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`);
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const sentence = (problem) => [`${capital(problem.message).replace(/\.$/, "")}.`, problem.advice && `Try: ${problem.advice}`].filter(Boolean).join(" ");
