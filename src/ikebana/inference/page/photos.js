// The sources of photos: the file dialog, drag and drop, the clipboard and the camera.
//
// onPhotos(files)  receives Files, and { name, error } for those that cannot be read

const getElement = (id) => document.getElementById(id);
// Hidden files and files of the system: the same as in data/folder.py.
const HIDDEN_NAMES = /^\.|^(thumbs\.db|ehthumbs\.db|desktop\.ini|__macosx|@eadir|\$recycle\.bin|recycler|[#@]recycle|network trash folder|lost\+found|system volume information|icon\r)$/i;
let cameraStream = null;
let cameraSession = 0; // increases whenever the camera opens or closes

export function listen(onPhotos) {
  for (const input of [getElement("choose"), getElement("capture")]) {
    input.addEventListener("change", () => {
      onPhotos([...input.files]);
      input.value = ""; // else choosing the same photo again would fire no event
    });
  }
  listenToDrops(onPhotos);
  document.addEventListener("paste", (event) => {
    if (document.querySelector("dialog[open]")) return;
    const entries = getEntries(event.clipboardData);
    if (!entries.length) return;
    event.preventDefault();
    expandFolders(entries).then(onPhotos);
  });
  setUpCamera(onPhotos);
}

// The dropped or pasted files and folders. Synchronous: the browser clears the data after the event.
function getEntries(transfer) {
  const items = [...(transfer?.items ?? [])].filter((item) => item.kind === "file");
  const entries = items.map((item) => {
    const entry = item.webkitGetAsEntry?.();
    return entry?.isDirectory ? entry : item.getAsFile();
  });
  return entries.filter(Boolean);
}

// → files only: each folder is replaced by the files in it
async function expandFolders(entries) {
  const files = [];
  for (const entry of entries) {
    const countBefore = files.length;
    if (entry instanceof File) files.push(entry);
    else for await (const file of walk(entry)) files.push(file);
    if (files.length === countBefore) files.push({ name: entry.name, error: "This folder contains no photos." });
  }
  return files;
}

// In ikebana's order: the files of a folder by name, then its folders.
async function* walk(folder) {
  let entries;
  try {
    entries = await listFolder(folder);
  } catch {
    yield { name: folder.name, error: "This folder cannot be read." };
    return;
  }
  for (const entry of entries.filter(({ isFile }) => isFile)) yield readEntry(entry);
  for (const entry of entries.filter(({ isDirectory }) => isDirectory)) yield* walk(entry);
}

// A browser returns the entries of a folder in batches; an empty one is the last.
async function listFolder(folder) {
  const reader = folder.createReader();
  const entries = [];
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) break;
    entries.push(...batch);
  }
  return entries.filter(({ name }) => !HIDDEN_NAMES.test(name)).sort((first, second) => (first.name < second.name ? -1 : 1));
}

function readEntry(entry) {
  return new Promise((resolve) => entry.file(resolve, () => resolve({ name: entry.name, error: "This file cannot be read." })));
}

function listenToDrops(onPhotos) {
  let depth = 0; // dragenter and dragleave also fire for the elements inside
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  const updateDepth = (change) => {
    depth = change === 0 ? 0 : Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  document.addEventListener("dragenter", (event) => hasFiles(event) && updateDepth(1));
  document.addEventListener("dragleave", (event) => hasFiles(event) && updateDepth(-1));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault(); // else the browser would leave the page and show the photo
    updateDepth(0);
    expandFolders(getEntries(event.dataTransfer)).then(onPhotos);
  });
}

// Phones open their own camera app; other devices show the camera in a dialog.
function setUpCamera(onPhotos) {
  const isPhone = matchMedia("(pointer: coarse)").matches;
  const hasCameraApi = Boolean(navigator.mediaDevices?.getUserMedia);
  getElement("camera").hidden = !isPhone && !hasCameraApi;
  getElement("camera").addEventListener("click", () => (isPhone ? getElement("capture").click() : openCamera()));
  getElement("close-camera").addEventListener("click", () => getElement("camera-dialog").close());
  getElement("camera-dialog").addEventListener("close", closeCamera);
  getElement("take-photo").addEventListener("click", () => takePhoto(onPhotos));
}

async function openCamera() {
  cameraSession += 1;
  const session = cameraSession;
  getElement("camera-error").hidden = true;
  getElement("take-photo").disabled = true;
  getElement("camera-dialog").showModal();
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    if (session !== cameraSession) return stopStream(stream); // the user closed the dialog meanwhile
    cameraStream = stream;
    getElement("video").srcObject = cameraStream;
    await getElement("video").play();
    if (session !== cameraSession) return;
    getElement("take-photo").disabled = false;
    getElement("take-photo").focus();
  } catch (error) {
    if (session !== cameraSession) return;
    const isDenied = error.name === "NotAllowedError";
    getElement("camera-error").textContent = isDenied ? "Access to the camera was denied." : "No usable camera was found.";
    getElement("camera-error").hidden = false;
  }
}

function takePhoto(onPhotos) {
  const [video, canvas] = [getElement("video"), document.createElement("canvas")];
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => blob && onPhotos([new File([blob], `camera ${new Date().toLocaleTimeString()}.jpg`, { type: blob.type })]), "image/jpeg", 0.92);
  getElement("camera-dialog").close();
}

function closeCamera() {
  cameraSession += 1;
  if (cameraStream) stopStream(cameraStream);
  cameraStream = null;
  getElement("video").srcObject = null;
}

function stopStream(stream) {
  stream.getTracks().forEach((track) => track.stop());
}
