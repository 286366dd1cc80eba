// This browser looks, in a worker so that the page stays awake: no photo leaves the machine.

import { Problem, start } from "./page.js";

const waiting = new Map();
let asked = 0;
let worker = null;

function hired() {
  const one = new Worker("engine-worker.js", { type: "module" });
  one.addEventListener("message", ({ data: { number, said, what, advice } }) => {
    const { done, failed } = waiting.get(number);
    waiting.delete(number);
    if (what) failed(new Problem(what, advice));
    else done(said);
  });
  one.addEventListener("error", (event) => {
    event.preventDefault();
    one.terminate();
    worker = null; // one whose script could not be loaded would never answer
    for (const { failed } of waiting.values()) failed(new Problem("this browser cannot run the network", "a newer browser"));
    waiting.clear();
  });
  return one;
}

function ask(task) {
  worker ??= hired();
  return new Promise((done, failed) => {
    asked += 1;
    waiting.set(asked, { done, failed });
    worker.postMessage({ number: asked, ...task });
  });
}

function look(file, wait) {
  wait("Looking …");
  return ask({ file });
}

start({ facts: () => ask({}), look, side_by_side: 1, note: "Photos stay on this device: your browser itself looks at them." });
