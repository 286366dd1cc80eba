// The ways a photo comes in: chosen, dropped, pasted, or from the camera.

const at = (name) => document.getElementById(name);
let stream = null;

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
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) event.preventDefault();
    take(files);
  });
  offerCamera(take);
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
    take([...event.dataTransfer.files]);
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
  at("camera-trouble").hidden = true;
  at("shoot").disabled = true;
  at("viewfinder").showModal();
  try {
    const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    if (!at("viewfinder").open) return opened.getTracks().forEach((track) => track.stop());
    stream = opened;
    at("video").srcObject = stream;
    await at("video").play();
    at("shoot").disabled = false;
    at("shoot").focus();
  } catch (error) {
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
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  at("video").srcObject = null;
}
