// Classifies on the server: each photo goes to POST /predict, and the server does not store it.

import { Problem, start } from "./page.js";

const TOKEN_KEY = "ikebana-token"; // in sessionStorage, which ends with the tab
const MAX_TRIES = 8; // while the server is busy
const getElement = (id) => document.getElementById(id);
const NEIGHBOURS = 5; // training photos per photo
let limits = null;
let hasNeighbours = false;
let tokenRequest = null;

getElement("token-dialog").addEventListener("cancel", (event) => event.preventDefault());
// A browser closes a dialog at the second Escape, whatever the page does; but the page needs the token.
getElement("token-dialog").addEventListener("close", () => tokenRequest && !getElement("token-dialog").open && getElement("token-dialog").showModal());

async function fetchWithToken(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN_KEY);
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem("the server cannot be reached", "again in a moment");
  }
  if (response.status !== 401) return response;
  if (sessionStorage.getItem(TOKEN_KEY) === token) await askForToken(token !== null); // else another request has asked meanwhile
  return fetchWithToken(path, options);
}

// All requests that need a token share one dialog.
function askForToken(isRetry) {
  tokenRequest ??= new Promise((resolve) => {
    getElement("token-reason").textContent = isRetry ? "This token is wrong." : getElement("token-reason").textContent;
    getElement("token").value = "";
    getElement("token-form").addEventListener("submit", () => {
      sessionStorage.setItem(TOKEN_KEY, getElement("token").value.replace(/[^\x21-\x7e]/g, "") || "-");
      tokenRequest = null;
      resolve();
    }, { once: true });
    getElement("token-dialog").showModal();
  });
  return tokenRequest;
}

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// Replaces the decoder's technical reason, such as "unreadable: cannot identify image file".
function describeError(error) {
  return /^unreadable\b/.test(error) ? "the file is damaged or not an image" : error;
}

async function createProblem(response) {
  const body = await response.json().catch(() => ({}));
  return new Problem(describeError(body.error ?? `the server responded with status ${response.status}`), body.advice ?? "");
}

async function loadModelInfo() {
  const response = await fetchWithToken("classes");
  if (!response.ok) throw await createProblem(response);
  const modelInfo = await response.json();
  limits = modelInfo.limits;
  hasNeighbours = modelInfo.has_neighbours;
  return modelInfo;
}

// Reads the file before sending it: a file that no longer exists would look like an unreachable server.
async function readFile(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Problem("this file cannot be read", "choosing it again");
  }
}

// The last 100 characters of a name. URLs cannot contain lone surrogates, which names on Windows may contain.
function shortenName(name) {
  return [...name].slice(-100).join("").replace(/\p{Surrogate}/gu, "\ufffd");
}

// Turns thumbnails from base64 into URLs: the page's policy allows blobs, not data URLs.
function withPictures(prediction) {
  for (const neighbour of prediction.neighbours ?? []) {
    const bytes = Uint8Array.from(atob(neighbour.thumbnail), (character) => character.charCodeAt(0));
    neighbour.picture = URL.createObjectURL(new Blob([bytes], { type: "image/jpeg" }));
  }
  return prediction;
}

async function predict(file, showStatus) {
  if (file.size > limits.bytes) throw new Problem(`this file is larger than ${Math.floor(limits.bytes / 2 ** 20)} MB`, "a smaller photo");
  const path = `predict?name=${encodeURIComponent(shortenName(file.name))}${hasNeighbours ? `&neighbours=${NEIGHBOURS}` : ""}`;
  const body = await readFile(file);
  for (let tries = 1; ; tries += 1) {
    showStatus("Classifying …");
    const response = await fetchWithToken(path, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
    if (response.ok) return withPictures((await response.json()).predictions[0]);
    if (response.status !== 503 || tries === MAX_TRIES) throw await createProblem(response);
    showStatus("Server busy, waiting …");
    await sleep((Number(response.headers.get("Retry-After")) || 1) * (1 + Math.random() / 2));
  }
}

start({
  loadModelInfo,
  predict,
  concurrency: 3,
  measuresDrift: true,
  note: "Photos are sent to this server, which does not store them.",
});
