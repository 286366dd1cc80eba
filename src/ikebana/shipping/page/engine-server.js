// The server looks: each photo goes to POST /predict, and is forgotten there.

import { Problem, start } from "./page.js";

const KEPT = "ikebana-token"; // where this tab keeps the token, until it is closed
const TRIES = 8; // while the server says that it is busy
const at = (name) => document.getElementById(name);
let limits = null;
let asking = null;

at("ask").addEventListener("cancel", (event) => event.preventDefault());
// A browser closes a dialog at the second Escape, whatever the page wants; but nothing goes on without a token.
at("ask").addEventListener("close", () => asking && !at("ask").open && at("ask").showModal());

async function fetched(path, options = {}) {
  const used = sessionStorage.getItem(KEPT);
  const headers = { ...options.headers, ...(used ? { Authorization: `Bearer ${used}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch {
    throw new Problem("the server cannot be reached", "once more in a moment");
  }
  if (response.status !== 401) return response;
  if (sessionStorage.getItem(KEPT) === used) await token(used !== null); // else another photo has asked meanwhile
  return fetched(path, options);
}

// One question for all photos that wait for it.
function token(wrong) {
  asking ??= new Promise((answered) => {
    at("ask-why").textContent = wrong ? "That token is not the right one." : at("ask-why").textContent;
    at("token").value = "";
    at("ask-form").addEventListener("submit", () => {
      sessionStorage.setItem(KEPT, at("token").value.replace(/[^\x21-\x7e]/g, "") || "-");
      asking = null;
      answered();
    }, { once: true });
    at("ask").showModal();
  });
  return asking;
}

const pause = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

async function problem(response) {
  const said = await response.json().catch(() => ({}));
  return new Problem(said.error ?? `the server answered ${response.status}`, said.advice ?? "");
}

async function facts() {
  const response = await fetched("classes");
  if (!response.ok) throw await problem(response);
  const told = await response.json();
  limits = told.limits;
  return told;
}

// Read before it is sent: else a file that is gone looks like a server that is.
async function read(file) {
  try {
    return await file.arrayBuffer();
  } catch {
    throw new Problem("this file cannot be read", "choosing it once more");
  }
}

// The end of a file's name, cut between letters: an address cannot hold half of one, which names on Windows may contain as well.
function ending(name) {
  return [...name].slice(-100).join("").replace(/\p{Surrogate}/gu, "\ufffd");
}

async function look(file, wait) {
  if (file.size > limits.bytes) throw new Problem(`this file is larger than ${Math.floor(limits.bytes / 2 ** 20)} MB`, "a smaller photo");
  const path = `predict?name=${encodeURIComponent(ending(file.name))}`;
  const body = await read(file);
  for (let tries = 1; ; tries += 1) {
    wait("Looking …");
    const response = await fetched(path, { method: "POST", body, headers: { "Content-Type": "application/octet-stream" } });
    if (response.ok) return (await response.json()).predictions[0];
    if (response.status !== 503 || tries === TRIES) throw await problem(response);
    wait("The server is busy: waiting …");
    await pause((Number(response.headers.get("Retry-After")) || 1) * (1 + Math.random() / 2));
  }
}

start({ facts, look, side_by_side: 3, note: "Photos go to this server, are looked at and forgotten." });
