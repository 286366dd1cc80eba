// A photo's card: its picture, what it shows, how sure that is, or why nothing can be said.

const THUMBNAIL = 320; // pixels: a card's picture, on a screen of two pixels a point
export const WAITING = "Waiting …";
const SHOWN = 5; // classes; the others are one click away

export function percent(share) {
  const whole = Math.round(share * 100);
  if (whole === 0 && share > 0) return "< 1\u00a0%";
  if (whole === 100 && share < 1) return "> 99\u00a0%";
  return `${whole}\u00a0%`;
}

// A probability: no network knows anything for certain, even where float32 has no number between what it says and 1.
function belief(share) {
  return percent(Math.min(Math.max(share, Number.MIN_VALUE), 1 - Number.EPSILON));
}

function made(tag, kind = "", text = "") {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  element.textContent = text;
  return element;
}

export class Card {
  constructor(file, removed) {
    this.file = file;
    this.name = file.name || "pasted photo";
    this.element = made("li", "card waiting");
    this.picture = made("div", "picture");
    this.picture.setAttribute("aria-hidden", "true");
    this.answer = made("h3", "answer", WAITING);
    this.why = made("p", "why");
    const name = made("p", "name", this.name);
    name.title = this.name;
    const text = made("div", "text");
    text.append(name, this.answer, this.why);
    const button = made("button", "remove", "×");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${this.name}`);
    button.addEventListener("click", removed);
    this.element.append(this.picture, text, button);
  }

  // A small copy of the square in the middle, so that a hundred large photos do not stay in memory, nor a very long one
  // exceeds what a canvas can be; a browser that cannot open it shows none.
  async draw() {
    try {
      const whole = await createImageBitmap(this.file);
      const side = Math.min(whole.width, whole.height);
      const [left, top] = [Math.floor((whole.width - side) / 2), Math.floor((whole.height - side) / 2)];
      const canvas = made("canvas");
      canvas.width = canvas.height = Math.min(side, THUMBNAIL);
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(whole, left, top, side, side, 0, 0, canvas.width, canvas.height);
      whole.close();
      this.picture.replaceChildren(canvas);
    } catch {
      this.picture.replaceChildren();
    }
  }

  wait(words) {
    this.answer.textContent = words;
  }

  // → the same in a sentence, to be read out
  show({ label, probabilities }, threshold) {
    const shares = Object.entries(probabilities).sort((one, other) => other[1] - one[1]);
    const [[best, share], second] = shares;
    if (label === null) {
      const might = [[best, share], second].filter(Boolean).map(([name, value]) => `${name} (${belief(value)})`);
      this._say("unsure", "Not sure", `It might be ${might.join(" or ")}.`);
    } else {
      this._say("named", label, "");
      this.answer.append(" ", made("span", "share", belief(share)));
    }
    const bars = made("div", "shares");
    bars.append(list(shares.slice(0, SHOWN)));
    if (shares.length > SHOWN) bars.append(others(shares.slice(SHOWN)));
    this.element.append(bars);
    return label === null ? `${this.name}: not sure. ${this.why.textContent}` : `${this.name}: ${label}, ${belief(share)}.`;
  }

  fail(what, advice) {
    this._say("wrong", what.replace(/\.$/, ""), advice ? `Try: ${advice}` : "");
    return `${this.name}: ${what}`;
  }

  _say(kind, answer, why) {
    this.element.className = `card ${kind}`;
    this.answer.textContent = answer;
    this.why.textContent = why;
    this.why.hidden = !why;
  }
}

function list(shares) {
  const bars = made("ol", "bars");
  for (const [name, share] of shares) {
    const row = made("li");
    const track = made("span", "track");
    const fill = made("span", "fill");
    fill.style.setProperty("--share", share);
    track.setAttribute("aria-hidden", "true");
    track.append(fill);
    row.append(made("span", "label", name), track, made("span", "number", belief(share)));
    bars.append(row);
  }
  return bars;
}

function others(shares) {
  const more = made("details");
  more.append(made("summary", "", `${shares.length} more`));
  more.addEventListener("toggle", () => more.open && more.children.length === 1 && more.append(list(shares)));
  return more;
}
