// Classifies in the browser: a worker keeps the page responsive, and no photo leaves the device.

import { Problem, start } from "./page.js";

const pending = new Map(); // request id → the callbacks of its promise
let lastId = 0;
let worker = null;

function createWorker() {
  const created = new Worker("engine-worker.js", { type: "module" });
  created.addEventListener("message", ({ data: { id, result, error, advice } }) => {
    const { resolve, reject } = pending.get(id);
    pending.delete(id);
    if (error) reject(new Problem(error, advice));
    else resolve(result);
  });
  created.addEventListener("error", (event) => {
    event.preventDefault();
    created.terminate();
    worker = null; // a worker whose script failed to load never answers
    for (const { reject } of pending.values()) reject(new Problem("this browser cannot run the model", "a newer browser"));
    pending.clear();
  });
  return created;
}

function request(task) {
  worker ??= createWorker();
  return new Promise((resolve, reject) => {
    lastId += 1;
    pending.set(lastId, { resolve, reject });
    worker.postMessage({ id: lastId, ...task });
  });
}

function predict(file, showStatus) {
  showStatus("Classifying …");
  return request({ file });
}

start({ loadModelInfo: () => request({}), predict, concurrency: 1, note: "Photos stay on this device: your browser classifies them." });
