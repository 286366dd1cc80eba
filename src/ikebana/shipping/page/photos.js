// The ways a photo comes in: chosen, dropped, pasted, or from the camera.
//
// take(files)  each a File, or { name, trouble } where there is none to be had

const at = (name) => document.getElementById(name);
// Of the system, or hidden on purpose: the same as in photos/folder.py.
const HIDDEN = /^\.|^(thumbs\.db|ehthumbs\.db|desktop\.ini|__macosx|@eadir|\$recycle\.bin|icon\r)$/i;
let stream = null;
let opening = 0; // the number of the last time that the camera was opened or put away

export function listen(take) {
  for (const input of [at("choose"), at("capture")]) {
    input.addEventListener("change", () => {
      take([...input.files]);
      input.value = ""; // so that the same photo may be chosen again
    });
  }
  listenToDrops(take);
  document.addEventListener("paste", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const found = given(event.clipboardData);
    if (!found.length) return;
    event.preventDefault();
    unfolded(found).then(take);
  });
  offerCamera(take);
}

// The files and folders that are dropped or pasted, asked for at once: after the event a browser has forgotten them.
function given(transfer) {
  const items = [...(transfer?.items ?? [])].filter((item) => item.kind === "file");
  const found = items.map((item) => {
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? entry : item.getAsFile();
  });
  return found.filter(Boolean);
}

// → files alone: in a folder's place, all that lie in it
async function unfolded(found) {
  const files = [];
  for (const each of found) {
    const before = files.length;
    if (each instanceof File) files.push(each);
    else for await (const file of below(each)) files.push(file);
    if (files.length === before) files.push({ name: each.name, trouble: "There is no photo in this folder." });
  }
  return files;
}

// In the order in which ikebana reads folders: files by name, then folder by folder.
async function* below(folder) {
  let entries;
  try {
    entries = await listed(folder);
  } catch {
    yield { name: folder.name, trouble: "This folder cannot be read." };
    return;
  }
  for (const entry of entries.filter((each) => each.isFile)) yield fileOf(entry);
  for (const entry of entries.filter((each) => each.isDirectory)) yield* below(entry);
}

// A browser gives some of a folder at a time, until nothing is left.
async function listed(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const more = await new Promise((done, failed) => reader.readEntries(done, failed));
    if (!more.length) break;
    entries.push(...more);
  }
  return entries.filter(({ name }) => !HIDDEN.test(name)).sort((one, other) => (one.name < other.name ? -1 : 1));
}

function fileOf(entry) {
  return new Promise((done) => entry.file(done, () => done({ name: entry.name, trouble: "This file cannot be read." })));
}

function listenToDrops(take) {
  let depth = 0; // dragenter and dragleave also come for what lies inside
  const dragged = (event) => event.dataTransfer?.types.includes("Files");
  const show = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => dragged(event) && show(1));
  document.addEventListener("dragleave", (event) => dragged(event) && show(-1));
  document.addEventListener("dragover", (event) => dragged(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!dragged(event)) return;
    event.preventDefault(); // else the browser would leave the page and show the photo
    show(0);
    unfolded(given(event.dataTransfer)).then(take);
  });
}

// A phone has a camera program that is better than ours; elsewhere the browser shows what the camera sees.
function offerCamera(take) {
  const phone = matchMedia("(pointer: coarse)").matches;
  const here = Boolean(navigator.mediaDevices?.getUserMedia);
  at("camera").hidden = !phone && !here;
  at("camera").addEventListener("click", () => (phone ? at("capture").click() : open()));
  at("put-away").addEventListener("click", () => at("viewfinder").close());
  at("viewfinder").addEventListener("close", putAway);
  at("shoot").addEventListener("click", () => shoot(take));
}

async function open() {
  opening += 1;
  const mine = opening;
  at("camera-trouble").hidden = true;
  at("shoot").disabled = true;
  at("viewfinder").showModal();
  try {
    const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    if (mine !== opening) return stop(opened); // it was put away meanwhile, and perhaps opened again
    stream = opened;
    at("video").srcObject = stream;
    await at("video").play();
    if (mine !== opening) return;
    at("shoot").disabled = false;
    at("shoot").focus();
  } catch (error) {
    if (mine !== opening) return;
    const denied = error.name === "NotAllowedError";
    at("camera-trouble").textContent = denied ? "The browser was not allowed to use the camera." : "There is no camera that can be used.";
    at("camera-trouble").hidden = false;
  }
}

function shoot(take) {
  const [video, canvas] = [at("video"), document.createElement("canvas")];
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && take([new File([blob], `camera ${new Date().toLocaleTimeString()}.jpg`, { type: blob.type })]), "image/jpeg", 0.92);
  at("viewfinder").close();
}

function putAway() {
  opening += 1;
  if (stream) stop(stream);
  stream = null;
  at("video").srcObject = null;
}

function stop(camera) {
  camera.getTracks().forEach((track) => track.stop());
}
