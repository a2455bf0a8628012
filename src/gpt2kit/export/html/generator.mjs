// Text generation: a prompt and options to tokens, one at a time. Gives the text of generate.py for the same options.
import { TokenHealing } from "./healing.mjs";
import { Reader } from "./model.mjs";
import { mostLikely, penalizeRepetition, probabilities, sample } from "./sampling.mjs";
import { TextStream } from "./text_stream.mjs";
import { VerseConstraint, VerseForm } from "./verse.mjs";

export const DEFAULTS = {
  maxNewTokens: 200,
  temperature: 0.8,
  topK: 0,
  topP: 0.95,
  minP: 0,
  repetitionPenalty: 1,
  seed: 1,
  lines: 0, // of a verse; 0 for prose
  charsPerLine: 7,
  lineEnds: undefined, // those of VerseForm
  tokenHealing: true,
  alternatives: 5,
};

/** An error that the page explains in the language of its reader. */
export class Refusal extends Error {}

export class Generator {
  constructor(gpt2, tokenizer, canHeal) {
    this.gpt2 = gpt2;
    this.tokenizer = tokenizer;
    this.canHeal = canHeal;
    this.start = tokenizer.end === null ? [] : [tokenizer.end]; // the ids before each prompt
    this.healing = new TokenHealing(tokenizer);
  }

  /** Yield {text, end, token, probability, alternatives} for each new token; `end` says why the last one is. */
  *generate(prompt, options) {
    const settings = { ...DEFAULTS, ...options };
    const { tokenizer } = this;
    const healed = this._readPrompt(prompt, settings);
    const isAllowed = this._constraint(prompt.slice(0, prompt.length - healed.end.length), settings);
    const reader = new Reader(this.gpt2);
    const stream = new TextStream(tokenizer, healed.ids);
    const ids = [...this.start, ...healed.ids];
    const fresh = []; // the ids generated so far; the first ones spell the end of the prompt
    let [rest, left] = [healed.steps, healed.end.length];
    let position = -rest.length;
    const afterPrompt = (text) => {
      const visible = text.slice(left);
      left = Math.max(left - text.length, 0);
      return visible;
    };
    while (settings.lines || position < settings.maxNewTokens) {
      const step = rest[0];
      const logits = reader.logits([...ids, ...fresh]).slice();
      if (!logits.every(Number.isFinite)) throw new Error("the output of the model is NaN or infinite");
      if (step) keepOnly(logits, step.allowed);
      const likely = probabilities(logits);
      if (isAllowed) keepAllowed(logits, isAllowed(fresh));
      penalizeRepetition(logits, [...healed.ids, ...fresh], settings.repetitionPenalty);
      const token = sample(logits, settings, 0, position);
      const alternatives = mostLikely(likely, settings.alternatives);
      const chosen = { token, probability: likely[token], alternatives };
      if (token === tokenizer.end) {
        yield { ...chosen, text: afterPrompt(stream.flush()), end: settings.lines ? "form" : "document" };
        return;
      }
      fresh.push(token);
      // Another token than the prompt's spells all of the rest.
      rest = step && token === step.token ? rest.slice(1) : [];
      position = step ? 0 - rest.length : position + 1;
      yield { ...chosen, text: afterPrompt(stream.push(token)), end: "" };
    }
    yield { text: afterPrompt(stream.flush()), end: "length" };
  }

  _readPrompt(prompt, settings) {
    const isHealed = settings.tokenHealing && this.canHeal && !settings.lines;
    const plain = { ids: this.tokenizer.encode(prompt), end: "", steps: [] };
    if (!this.start.length && !plain.ids.length) throw new Refusal("needsPrompt");
    if (!isHealed) return plain;
    const healed = this.healing.heal(prompt);
    return this.start.length || healed.ids.length ? healed : plain; // the model must read at least one token
  }

  _constraint(prompt, settings) {
    if (!settings.lines) return null;
    if (this.tokenizer.end === null) throw new Refusal("verseNeedsEnd");
    const constraint = new VerseConstraint(
      new VerseForm(settings.lines, settings.charsPerLine, settings.lineEnds),
      this.tokenizer,
    );
    if (constraint.problem()) throw new Refusal("verseNeedsTokens");
    return constraint.after(prompt);
  }

  /** Return the logits after each of the ids, as one array. */
  logits(ids) {
    const rows = [];
    this.gpt2.reset();
    for (const id of ids) {
      this.gpt2.read(id);
      rows.push(this.gpt2.nextLogits().slice());
    }
    return rows;
  }

  /** Return the nats and the bytes of a text as one document, as test.py does: in windows that do not overlap. */
  score(text) {
    const { tokenizer } = this;
    const ids = [...this.start, ...tokenizer.encode(text), ...this.start];
    const context = this.gpt2.shape.n_positions;
    let nats = 0;
    for (let start = 0; start + 1 < ids.length; start += context) {
      this.gpt2.reset();
      for (let i = start; i < Math.min(start + context, ids.length - 1); i++) {
        this.gpt2.read(ids[i]);
        nats += surprisal(this.gpt2.nextLogits(), ids[i + 1]);
      }
    }
    return { nats, bytes: new TextEncoder().encode(text).length + this.start.length, tokens: ids.length - 1 };
  }
}

function surprisal(logits, token) {
  let largest = -Infinity;
  for (let i = 0; i < logits.length; i++) largest = Math.max(largest, logits[i]);
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - largest);
  return Math.log(sum) + largest - logits[token];
}

function keepOnly(logits, tokens) {
  const kept = tokens.map((token) => logits[token]);
  logits.fill(-Infinity);
  tokens.forEach((token, i) => (logits[token] = kept[i]));
}

function keepAllowed(logits, mask) {
  for (let i = 0; i < logits.length; i++) if (!mask[i]) logits[i] = -Infinity; // also ids that have no token
}
