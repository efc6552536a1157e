// Uploads a file by presigned URL, asks for its conversion, follows it and offers the result. No library, no other host.

const $ = (id) => document.getElementById(id);
const STAGES = ["uploading", "accepted", "prepared", "converting", "verifying", "completed"];
const PARTS_AT_ONCE = 3;
const RETRY_MS = 1000;
const PUTS_MAX = 4;
let running = null; // {abort, jobId}

class Shown extends Error {} // an error in words for whoever looks at the page

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (options.body) headers["Content-Type"] ??= "application/json";
  if ($("key").value) headers.Authorization = `Bearer ${$("key").value}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Shown("The gateway cannot be reached. Is it still running?");
  }
  if (answer.status === 401) {
    $("key-field").hidden = false;
    throw new Shown("This gateway wants an API key. Enter it above and try again.");
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    const error = new Shown(problem.detail || `The gateway answered ${answer.status}.`);
    error.again = answer.status === 503;
    throw error;
  }
  return answer;
}

const asJson = async (path, options) => (await ask(path, options)).json();
const post = (path, body, signal) => asJson(path, { method: "POST", body: JSON.stringify(body), signal });

function size(bytes) {
  for (const [unit, of] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) if (bytes >= of) return `${(bytes / of).toFixed(1)} ${unit}`;
  return `${bytes} bytes`;
}

function stage(name, percent, words) {
  const at = STAGES.indexOf(name);
  for (const item of document.querySelectorAll("#stages li")) {
    const index = STAGES.indexOf(item.dataset.stage);
    item.className = index < at || name === "completed" ? "done" : "";
    if (index === at && name !== "completed") item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
  }
  $("bar").value = percent;
  $("status").textContent = words;
}

function failed(message) {
  const current = document.querySelector("#stages [aria-current]");
  if (current) { current.removeAttribute("aria-current"); current.className = "failed"; }
  $("status").textContent = "It did not work.";
  $("error").textContent = message;
  $("error").hidden = false;
}

// A file or a part of one; what broke off is sent again, and what is there is not.
async function put(...sent) {
  for (let left = PUTS_MAX; ; left--) {
    try {
      return await putOnce(...sent);
    } catch (error) {
      if (!error.again || left === 1) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
}

// fetch tells no progress of an upload; XMLHttpRequest does.
function putOnce(url, headers, data, onSent, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const fail = (message, again) => reject(Object.assign(new Shown(message), { again }));
    request.open("PUT", url);
    for (const [name, value] of Object.entries(headers)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => onSent(event.loaded);
    request.onload = () => request.status === 200 ? resolve(request.getResponseHeader("ETag"))
      : fail(`The object store did not take the file (it answered ${request.status}).`, request.status >= 500);
    request.onerror = () => fail("The object store cannot be reached from this page. Its CORS rules may not allow it.", true);
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    if (signal.aborted) { reject(new DOMException("aborted", "AbortError")); return; }
    signal.addEventListener("abort", () => request.abort(), { once: true });
    request.send(data);
  });
}

const typeOf = (file) => file.type || "application/octet-stream";

async function upload(file, signal, told) {
  const type = typeOf(file);
  const begun = await post("/api/uploads", { file_name: file.name, content_type: type, size_bytes: file.size }, signal);
  const sent = new Map();
  const started = performance.now();
  const tell = (number, bytes) => {
    sent.set(number, bytes);
    const all = [...sent.values()].reduce((a, b) => a + b, 0);
    const rate = all / Math.max(0.001, (performance.now() - started) / 1000);
    told((100 * all) / file.size, `${size(all)} of ${size(file.size)} uploaded, ${size(rate)}/s`);
  };
  const done = { key: begun.key };
  if (begun.parts) {
    const waiting = [...begun.parts], parts = [];
    const lane = async () => {
      for (let part; (part = waiting.shift());) {
        const from = (part.part_number - 1) * begun.part_size;
        const data = file.slice(from, from + begun.part_size);
        const etag = await put(part.upload_url, {}, data, (bytes) => tell(part.part_number, bytes), signal);
        parts.push({ part_number: part.part_number, etag });
      }
    };
    await Promise.all(Array.from({ length: PARTS_AT_ONCE }, lane));
    Object.assign(done, { upload_id: begun.upload_id, parts });
  } else {
    await put(begun.upload_url, begun.headers, file, (bytes) => tell(1, bytes), signal);
  }
  await post("/api/uploads/complete", done, signal);
  return begun.key;
}

const WORDS = { accepted: "Accepted, waiting for its turn", prepared: "Prepared", verifying: "Verifying the result" };

// The events of a job, by fetch: an EventSource sends no API key. After a break it goes on from the last event.
async function follow(jobId, signal) {
  let last = "";
  for (;;) {
    try {
      const headers = last ? { "Last-Event-ID": last } : {};
      const answer = await ask(`/api/convert/${jobId}/events`, { headers, signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let piece; !(piece = await reader.read()).done;) {
        text += piece.value;
        for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
          const event = Object.fromEntries(text.slice(0, end).split("\n").map((line) => line.split(/: (.*)/s)));
          if (!event.data) continue;
          last = event.id;
          const data = JSON.parse(event.data);
          if (event.event === "result") return data;
          if (event.event === "error") throw new Shown(data.error.message);
          if (data.status === "cancelled") throw new Shown("The conversion was cancelled.");
          const words = data.stage ? `${data.stage[0].toUpperCase()}${data.stage.slice(1)}, ${data.percent} %` : WORDS[data.status];
          stage(data.status, data.progress, words);
        }
      }
    } catch (error) {
      if (error.name === "AbortError" || (error instanceof Shown && !error.again)) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

async function run(event) {
  event.preventDefault();
  const file = $("file").files[0];
  if (!file) return;
  const abort = new AbortController();
  running = { abort, jobId: null };
  $("error").hidden = $("ready").hidden = true;
  $("none").hidden = false;
  $("start").disabled = $("both").disabled = true;
  $("cancel").hidden = false;
  try {
    if (!file.size) throw new Shown("This file is empty.");
    stage("uploading", 0, "Asking where to upload to");
    const key = await upload(file, abort.signal, (percent, words) => stage("uploading", percent, words));
    stage("accepted", 0, "Handing the job over");
    const job = { source: { key }, format: $("format").value, quality: $("quality").value, file_name: file.name };
    running.jobId = (await post("/api/convert", job, abort.signal)).job_id;
    const result = await follow(running.jobId, abort.signal);
    stage("completed", 100, "Ready.");
    $("download").href = result.download_url;
    $("download").textContent = `Download ${result.file_name}`;
    $("about").textContent = `${size(result.size_bytes)}; the link is good until ${new Date(result.download_expires_ms).toLocaleString()}`;
    $("none").hidden = true;
    $("ready").hidden = false;
  } catch (error) {
    if (error.name === "AbortError") failed("Cancelled. Nothing was kept running.");
    else if (error instanceof Shown) failed(error.message);
    else { failed("The page failed; its console says why."); console.error(error); }
  } finally {
    running = null;
    $("start").disabled = $("both").disabled = false;
    $("cancel").hidden = true;
  }
}

// What the gateway's process uses while the work is done: lines that it tells, the last one told after the work's end.
async function measured(work, told) {
  const stop = new AbortController();
  const answer = await ask("/api/relay/usage", { signal: stop.signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "", seconds = null;
  const next = async () => {
    while (!text.includes("\n")) {
      const piece = await reader.read();
      if (piece.done) throw new Shown("The gateway ended the measurement.");
      text += piece.value;
    }
    const end = text.indexOf("\n");
    told(JSON.parse(text.slice(0, end)), seconds);
    text = text.slice(end + 1);
  };
  try {
    await next();
    const started = performance.now();
    let error = null;
    const working = work().catch((found) => { error = found; }).finally(() => { seconds = (performance.now() - started) / 1000; });
    while (seconds === null) await next();
    await working;
    if (error) throw error;
    await next(); // may have been on its way before the end
    await next();
  } finally {
    stop.abort();
  }
}

function show(way, used, seconds) {
  const cell = (name) => document.querySelector(`[data-of="${way}-${name}"]`);
  const about = document.createElement("small");
  about.textContent = `+${size(used.memory_peak_bytes - used.memory_start_bytes)}`;
  cell("bytes").textContent = size(used.request_bytes);
  cell("seconds").textContent = `${(seconds ?? used.seconds).toFixed(2)} s`;
  cell("cpu").textContent = `${used.cpu_seconds.toFixed(2)} s`;
  cell("memory").replaceChildren(size(used.memory_peak_bytes), about);
}

async function compare() {
  const file = $("file").files[0];
  if (!file || !file.size) { $("compare-status").textContent = "Choose a file first, one that is not empty."; return; }
  const tell = (words) => { $("compare-status").textContent = words; };
  const signal = new AbortController().signal;
  const relay = () => asJson(`/api/relay?file_name=${encodeURIComponent(file.name)}`,
    { method: "POST", body: file, headers: { "Content-Type": typeOf(file) } });
  for (const cell of document.querySelectorAll("#compare td")) cell.textContent = "–";
  $("both").disabled = $("start").disabled = true;
  try {
    tell("Uploading straight to the store");
    await measured(() => upload(file, signal, (_, words) => tell(words)), (...found) => show("direct", ...found));
    tell("Uploading through the gateway");
    await measured(relay, (...found) => show("relay", ...found));
    tell(`${size(file.size)} uploaded both ways.`);
  } catch (error) {
    tell(error instanceof Shown ? error.message : "The page failed; its console says why.");
    if (!(error instanceof Shown)) console.error(error);
  } finally {
    $("both").disabled = $("start").disabled = false;
  }
}

async function cancel() {
  if (!running) return;
  const { abort, jobId } = running;
  if (!jobId) abort.abort();
  else await ask(`/api/convert/${jobId}`, { method: "DELETE" }).catch(() => abort.abort());
}

function chosen() {
  const file = $("file").files[0];
  if (file) $("chosen").textContent = `${file.name} (${size(file.size)})`;
}

function options(select, names, preferred) {
  select.replaceChildren(...names.map((name) => new Option(name, name, name === preferred, name === preferred)));
}

async function begin() {
  const { formats, relay } = await asJson("/api/formats");
  $("compare").hidden = !relay;
  if (!running) $("status").textContent = "Nothing is under way.";
  const named = Object.fromEntries(formats.map((kind) => [kind.format, kind]));
  options($("format"), Object.keys(named), "mp3");
  for (const option of $("format").options) option.textContent = `${option.value} (${named[option.value].kind})`;
  options($("quality"), named.mp3.qualities, "medium");
  $("error").hidden = true;
}

$("form").addEventListener("submit", run);
$("cancel").addEventListener("click", cancel);
$("both").addEventListener("click", compare);
$("file").addEventListener("change", chosen);
$("key").addEventListener("change", () => begin().catch((error) => failed(error.message)));
const drop = $("drop");
for (const name of ["dragover", "dragleave", "drop"]) drop.addEventListener(name, (event) => {
  event.preventDefault();
  drop.classList.toggle("over", name === "dragover");
  if (name === "drop" && event.dataTransfer.files.length) { $("file").files = event.dataTransfer.files; chosen(); }
});
begin().catch((error) => failed(error.message));
