// The page: unpacks the model into a worker, sends it requests and shows the text that it generates.
import { LANGUAGES, chooseLanguage, translateLabel } from "./languages.mjs";

const LOADING_INTERVAL = 30; // milliseconds between two looks for blocks of the model that have arrived

/** Show control characters, and those that change the direction of a text, by their code points. */
export function visible(text) {
  const hidden = /[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069]/gu;
  const code = (character) => `<U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`;
  return text.replace(hidden, code).replaceAll("\n", "↵").replaceAll("\t", "→").replaceAll(" ", "␣");
}

/** Replace {name} in a text by values. */
export function fill(text, values) {
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The worker and its requests. */
export class Model {
  constructor(source, events) {
    this.events = events; // progress, ready, token, error
    this.waiting = new Map();
    this.number = 0;
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(url);
    this.worker.onmessage = ({ data }) => this._receive(data);
    this.worker.onerror = (event) => events.error("", event.message ?? "no worker");
  }

  send(message) {
    this.worker.postMessage(message);
  }

  /** Send a request and return its result. */
  request(name, ...values) {
    const id = ++this.number;
    this.send({ type: "request", id, name, values });
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  _receive(data) {
    const waiting = this.waiting.get(data.id);
    if (data.type === "result" || data.type === "error") this.waiting.delete(data.id);
    if (data.type === "result") waiting.resolve(data.result);
    else if (data.type === "error" && waiting) waiting.reject(data);
    else if (data.type === "error") this.events.error(data.refusal, data.message);
    else this.events[data.type](data);
  }
}

/** Send the blocks of the model that the browser has read to the worker, while the rest arrives. */
function sendBlocks(document, model) {
  const blocks = [...document.querySelectorAll("script.block")];
  const isComplete = document.readyState !== "loading";
  // The last block may not be complete.
  for (const block of isComplete ? blocks : blocks.slice(0, -1)) {
    model.send({ type: "block", text: block.textContent });
    block.remove(); // to free its memory
  }
  if (isComplete) model.send({ type: "end" });
  else setTimeout(() => sendBlocks(document, model), LOADING_INTERVAL);
}

/** Start the page. */
export function start(document) {
  const language = chooseLanguage(navigator.languages ?? [navigator.language]);
  const texts = LANGUAGES[language];
  const find = (id) => document.getElementById(id);
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = texts[element.dataset.text];
  for (const label of document.querySelectorAll("th.label")) label.textContent = translateLabel(label.textContent, language);

  let [isReady, isGenerating, seed, text] = [false, false, 0, ""];
  const view = new TokenView(document, texts);

  const update = () => {
    find("generate").disabled = !isReady || isGenerating;
    find("stop").disabled = !isGenerating;
    find("result").setAttribute("aria-busy", String(isGenerating));
    find("copy").disabled = find("download").disabled = !text || isGenerating;
  };
  const showError = (refusal, message) => {
    find("loading").hidden = true;
    find("status").textContent = texts[refusal] ?? fill(texts.failed, { message });
  };

  const model = new Model(find("worker").textContent, {
    progress: ({ fraction }) => (find("progress").value = fraction),
    ready: () => {
      isReady = true;
      find("loading").hidden = true;
      update();
    },
    token: (chunk) => {
      text += chunk.text;
      view.add(chunk);
    },
    error: showError,
  });
  const engine = new URLSearchParams(location.search).get("engine") ?? "auto"; // to compare the two
  model.send({ type: "open", bytes: Number(document.body.dataset.bytes), engine });
  sendBlocks(document, model);

  const generate = async () => {
    const options = readOptions(find);
    const prompt = find("prompt").value;
    seed = options.seed;
    isGenerating = true;
    text = prompt;
    view.clear(prompt);
    find("status").textContent = texts.generating;
    update();
    try {
      const { tokens, seconds, end } = await model.request("generate", prompt, options);
      const speed = Math.round(tokens / Math.max(seconds, 0.001));
      const reason = texts[`end${end[0].toUpperCase()}${end.slice(1)}`];
      find("status").textContent = `${reason} ${fill(texts.done, { tokens, speed, seed })}`;
    } catch (error) {
      showError(error.refusal, error.message);
    }
    isGenerating = false;
    update();
  };

  find("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (isReady && !isGenerating) generate();
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("form").requestSubmit();
  });
  find("stop").addEventListener("click", () => model.send({ type: "stop" }));
  find("copy").addEventListener("click", async () => {
    await copyText(document, text);
    find("status").textContent = texts.copied;
  });
  find("download").addEventListener("click", () => downloadText(document, text));
  update();
  // For the console of the browser, and for tests.
  globalThis.gpt2kit = { request: (name, ...values) => model.request(name, ...values) };
}

/** Return the options of the form. */
function readOptions(find) {
  const number = (id, least) => Math.max(Number(find(id).value) || 0, least);
  const seed = find("seed").value;
  return {
    maxNewTokens: number("maxNewTokens", 1),
    temperature: number("temperature", 0),
    topK: number("topK", 0),
    topP: number("topP", 0.001),
    minP: number("minP", 0),
    repetitionPenalty: number("repetitionPenalty", 0.01),
    seed: seed === "" ? Math.floor(Math.random() * 1e6) : Math.trunc(Number(seed)),
    lines: number("lines", 0),
    charsPerLine: number("charsPerLine", 1),
    lineEnds: find("lineEnds").value === "breaks" ? ["\n"] : undefined,
  };
}

async function copyText(document, text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const box = document.createElement("textarea"); // where a page from a file has no clipboard
  box.value = text;
  document.body.append(box);
  box.select();
  document.execCommand("copy");
  box.remove();
}

function downloadText(document, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  link.download = "text.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** The generated text, and the alternatives of the token that is pointed at or selected. */
class TokenView {
  constructor(document, texts) {
    this.document = document;
    this.texts = texts;
    this.box = document.getElementById("result");
    this.panel = document.getElementById("alternatives");
    this.chunks = []; // for each element, the tokens that spell it
    this.pending = [];
    const index = (event) => [...this.box.children].indexOf(event.target.closest(".token")) - 1;
    for (const type of ["pointerover", "click"]) this.box.addEventListener(type, (event) => this.select(index(event)));
    this.box.addEventListener("keydown", (event) => this._move(event));
    this.box.addEventListener("focus", () => this.selected < 0 && this.select(0));
    this.box.addEventListener("blur", () => this.hide());
    this.box.addEventListener("pointerleave", () => this.document.activeElement !== this.box && this.hide());
  }

  /** Show a prompt alone. */
  clear(prompt) {
    const element = this.document.createElement("span");
    element.className = "prompt";
    element.textContent = prompt;
    this.box.replaceChildren(element);
    this.chunks = [];
    this.pending = [];
    this.hide();
  }

  /** Hide the alternatives. */
  hide() {
    this.box.querySelector(".selected")?.classList.remove("selected");
    this.selected = -1;
    this.panel.hidden = true;
  }

  /** Add a token. One that completes no character is shown with the next ones. */
  add(chunk) {
    if (chunk.token) this.pending.push(chunk);
    if (!chunk.text) return;
    const element = this.document.createElement("span");
    element.className = "token";
    element.textContent = chunk.text;
    const surprise = 1 - Math.min(...this.pending.map(({ probability }) => probability), 1);
    element.style.setProperty("--surprise", `${Math.round(60 * surprise)}%`);
    this.box.append(element);
    this.chunks.push(this.pending);
    this.pending = [];
  }

  /** Show the alternatives of an element. */
  select(index) {
    if (!this.chunks[index]?.length || index === this.selected) return;
    this.box.querySelector(".selected")?.classList.remove("selected");
    this.box.children[index + 1].classList.add("selected");
    this.selected = index;
    this.panel.replaceChildren(...this.chunks[index].map((chunk) => this._list(chunk)));
    this.panel.hidden = false;
  }

  _move(event) {
    if (event.key === "Escape") this.hide();
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -this.chunks.length, End: this.chunks.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.select(Math.min(Math.max(this.selected + steps[event.key], 0), this.chunks.length - 1));
  }

  /** Return a list of a token and its alternatives, with their probabilities. */
  _list({ token, probability, alternatives }) {
    const list = this.document.createElement("ul");
    const rows = [[token, probability, this.texts.sampled], ...alternatives.map((item) => [item.text, item.probability, ""])];
    for (const [text, value, note] of rows) {
      const row = this.document.createElement("li");
      const name = this.document.createElement("b");
      name.textContent = visible(text);
      row.append(name, ` ${(100 * value).toFixed(1)} % ${note}`);
      list.append(row);
    }
    return list;
  }
}
