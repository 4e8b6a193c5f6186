// Files into the page: chosen, dropped, pasted, filmed or recorded. Runs once in the element of stage.html, where
// Gradio gives `element`, `trigger` (an event for Python) and `upload` (a file to the server).
const find = (selector) => element.querySelector(selector);
const zone = find("[data-drop]"), recorder = find("[data-recorder]"), news = find("[data-news]");
const input = find("input[type=file]"), mirror = find(".mirror"), clock = find("[data-clock]");
const limit = Number("MAX_BYTES");
const longest = { video: Number("MAX_CLIP_SECONDS"), audio: Number("MAX_SOUND_SECONDS") };
let camera = null, rolling = null, ticking = null;

const tell = (text, trouble = false) => {
  news.textContent = text;
  news.classList.toggle("trouble", trouble);
};

async function give(files) {
  const given = [], faults = [];
  const add = (text) => tell([...faults, text].join(" "), faults.length > 0);
  for (const file of files) {
    if (file.size > limit) {
      faults.push(`${file.name} has ${Math.round(file.size / 2 ** 20)} MB: at most ${limit / 2 ** 20} MB are taken.`);
      continue;
    }
    add(`Sending ${file.name} …`);
    try {
      given.push({ path: (await upload(file)).path, name: file.name });
    } catch (error) {
      faults.push(`${file.name} could not be sent: check the connection and send it again.`);
    }
  }
  news.dataset.faults = faults.join(" ");
  tell(news.dataset.faults, faults.length > 0);
  if (!given.length) return;
  add(given.length > 1 ? "Looking at the files …" : `Looking at ${given[0].name} …`);
  trigger("upload", { files: given });
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if ("choose" in button.dataset) input.click();
  if (button.dataset.record) record(button.dataset.record);
  if ("stop" in button.dataset) finish(true);
  if ("discard" in button.dataset) finish(false);
});
input.addEventListener("change", () => { give([...input.files]); input.value = ""; });

window.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) zone.classList.remove("over"); });
window.addEventListener("drop", (event) => {
  event.preventDefault();
  zone.classList.remove("over");
  give([...event.dataTransfer.files]);
});
window.addEventListener("paste", (event) => { if (event.clipboardData.files.length) give([...event.clipboardData.files]); });

async function record(kind) {
  if (!navigator.mediaDevices?.getUserMedia) {
    tell("The browser lends camera and microphone only to pages over https or on this machine.", true);
    return;
  }
  try {
    camera = await navigator.mediaDevices.getUserMedia({
      video: kind === "audio" ? false : { facingMode: "environment", width: { ideal: 1280 } },
      audio: kind !== "photo",
    });
  } catch (error) {
    tell("The browser gave no access to camera or microphone: allow it beside the address, then try again.", true);
    return;
  }
  tell("");
  recorder.hidden = false;
  recorder.dataset.kind = kind;
  find("[data-stop]").textContent = kind === "photo" ? "Take the photo" : "Stop and use";
  mirror.hidden = clock.hidden = false;
  if (kind === "audio") mirror.hidden = true; else { mirror.srcObject = camera; mirror.play(); }
  if (kind === "photo") clock.hidden = true; else roll(kind);
  find("[data-stop]").focus();
}

function roll(kind) {
  const pieces = [], started = Date.now();
  rolling = new MediaRecorder(camera);
  rolling.ondataavailable = (event) => pieces.push(event.data);
  rolling.onstop = () => {
    const type = rolling.mimeType || `${kind}/webm`, ending = type.includes("mp4") ? "mp4" : type.includes("ogg") ? "ogg" : "webm";
    if (rolling.keep) give([new File(pieces, `${kind === "audio" ? "recording" : "film"}.${ending}`, { type })]);
    rolling = null;
  };
  rolling.start();
  ticking = setInterval(() => {
    const seconds = Math.floor((Date.now() - started) / 1000);
    clock.textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    if (seconds >= longest[kind] - 1) finish(true);
  }, 250);
}

function finish(keep) {
  clearInterval(ticking);
  clock.textContent = "0:00";
  if (recorder.dataset.kind === "photo" && keep) takePhoto();
  if (rolling) { rolling.keep = keep; rolling.stop(); }
  camera?.getTracks().forEach((track) => track.stop());
  mirror.srcObject = null;
  recorder.hidden = true;
  find(`[data-record="${recorder.dataset.kind}"]`).focus();
}

function takePhoto() {
  const canvas = document.createElement("canvas");
  canvas.width = mirror.videoWidth;
  canvas.height = mirror.videoHeight;
  canvas.getContext("2d").drawImage(mirror, 0, 0);
  canvas.toBlob((blob) => give([new File([blob], "photo.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
}
