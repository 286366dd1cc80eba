// A photo's card: its thumbnail, and its prediction or the reason why there is none.

import { createNeighbours } from "./neighbours.js";

const THUMBNAIL_PIXELS = 320; // twice the size in CSS pixels, for high-density screens
export const WAITING = "Waiting …";
const SHOWN_CLASSES = 5; // the user can unfold the others
const SHOWN_CANDIDATES = 4;

export function percent(fraction) {
  const rounded = Math.round(fraction * 100);
  if (rounded === 0 && fraction > 0) return "<1%";
  if (rounded === 100 && fraction < 1) return ">99%";
  return `${rounded}%`;
}

// Never 0% or 100%: no network is certain, even if its float32 probability is exactly 0 or 1.
function formatProbability(probability) {
  return percent(Math.min(Math.max(probability, Number.MIN_VALUE), 1 - Number.EPSILON));
}

function createElement(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  return element;
}

export class Card {
  constructor(file, onRemove) {
    this.file = file;
    this.name = file.name || "pasted photo";
    this.prediction = null;
    this.error = null;
    this.element = createElement("li", "card waiting");
    this.picture = createElement("div", "picture");
    this.picture.setAttribute("aria-hidden", "true");
    this.answer = createElement("h3", "answer", WAITING);
    this.reason = createElement("p", "reason");
    const name = createElement("p", "name", this.name);
    name.title = this.name;
    const text = createElement("div", "text");
    text.append(name, this.answer, this.reason);
    const button = createElement("button", "remove", "×");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${this.name}`);
    button.addEventListener("click", onRemove);
    this.element.append(this.picture, text, button);
  }

  // A small copy of the centre square: many large photos would fill the memory, and a very long one exceeds the limits of
  // a canvas. If the browser cannot decode the file, the card has no picture.
  async drawThumbnail() {
    try {
      const bitmap = await createImageBitmap(this.file);
      const side = Math.min(bitmap.width, bitmap.height);
      const [left, top] = [Math.floor((bitmap.width - side) / 2), Math.floor((bitmap.height - side) / 2)];
      const canvas = createElement("canvas");
      canvas.width = canvas.height = Math.min(side, THUMBNAIL_PIXELS);
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(bitmap, left, top, side, side, 0, 0, canvas.width, canvas.height);
      bitmap.close();
      this.picture.replaceChildren(canvas);
    } catch {
      this.picture.replaceChildren();
    }
  }

  showStatus(text) {
    this.answer.textContent = text;
  }

  // → the prediction as a sentence for screen readers
  showPrediction(prediction) {
    const { label, probabilities, candidates, status } = prediction;
    this.prediction = prediction;
    const sorted = Object.entries(probabilities).sort(([, first], [, second]) => second - first);
    const confidence = sorted[0][1];
    const likely = candidates.map((name) => [name, probabilities[name]]);
    if (status === "unknown") {
      this._setState("unknown", "Unlike the training photos", `The closest class is ${sorted[0][0]}.`);
    } else if (label === null) {
      this._setState("unsure", "Not sure", `It might be ${joinCandidates(likely.length > 1 ? likely : sorted.slice(0, 2))}.`);
    } else {
      const others = likely.slice(1);
      this._setState("named", label, others.length ? `It might also be ${joinCandidates(others)}.` : "");
      this.answer.append(" ", createElement("span", "share", formatProbability(confidence)));
    }
    const container = createElement("div", "shares");
    container.append(createBars(sorted.slice(0, SHOWN_CLASSES)));
    if (sorted.length > SHOWN_CLASSES) container.append(createDetails(sorted.slice(SHOWN_CLASSES)));
    if (prediction.neighbours?.length) container.append(createNeighbours(prediction.neighbours));
    this.element.append(container);
    const answer = status === "unknown" ? "unlike the training photos" : label === null ? "not sure" : `${label}, ${formatProbability(confidence)}`;
    return `${this.name}: ${answer}. ${this.reason.textContent}`.trim();
  }

  // → the error as a sentence for screen readers
  showError(what, advice) {
    this.error = what.replace(/\.$/, "");
    this._setState("wrong", this.error, advice ? `Try: ${advice}` : "");
    return `${this.name}: ${what}`;
  }

  _setState(state, answer, reason) {
    this.element.className = `card ${state}`;
    this.answer.textContent = answer;
    this.reason.textContent = reason;
    this.reason.hidden = !reason;
  }
}

// [name, probability] of some classes → "tulip (41%), rose (38%) or daisy (12%)"
function joinCandidates(entries) {
  const shown = entries.slice(0, SHOWN_CANDIDATES).map(([name, probability]) => `${name} (${formatProbability(probability)})`);
  if (entries.length > SHOWN_CANDIDATES) shown.push(`one of ${entries.length - SHOWN_CANDIDATES} more`);
  return shown.length < 2 ? shown.join() : `${shown.slice(0, -1).join(", ")} or ${shown.at(-1)}`;
}

function createBars(entries) {
  const bars = createElement("ol", "bars");
  for (const [name, probability] of entries) {
    const row = createElement("li");
    const track = createElement("span", "track");
    const fill = createElement("span", "fill");
    fill.style.setProperty("--share", probability);
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    row.append(createElement("span", "label", name), track, createElement("span", "number", formatProbability(probability)));
    bars.append(row);
  }
  return bars;
}

// Creates the bars only when the user unfolds them.
function createDetails(entries) {
  const details = createElement("details");
  details.append(createElement("summary", "", `${entries.length} more`));
  details.addEventListener("toggle", () => details.open && details.children.length === 1 && details.append(createBars(entries)));
  return details;
}
