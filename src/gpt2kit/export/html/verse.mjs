// A constraint on tokens that keeps a poem in its form, N lines of M letters, as verse.py does, without rhymes.
import { toBytes } from "./tokenizer.mjs";

export const LINE_ENDS = ["，", "。\n"];
const FREE = "\0"; // a free letter in a template

const isLetter = (character) => /^\p{L}$/u.test(character);

export class VerseForm {
  /** `ends` are the texts after each line, repeated; the last line breaks of a poem are dropped. */
  constructor(lines, length, ends = LINE_ENDS) {
    this.lines = lines;
    this.length = length; // letters per line
    this.ends = ends;
  }

  /** Return the characters of the poem, with U+0000 for each free letter. */
  template() {
    const lines = Array.from({ length: this.lines }, (_, i) => FREE.repeat(this.length) + this.ends[i % this.ends.length]);
    return [...lines.join("").replace(/\n+$/, "")];
  }
}

export class VerseConstraint {
  constructor(form, tokenizer) {
    this.form = form;
    this.tokenizer = tokenizer;
    this.bytes = tokenizer.bytes.map((bytes, id) => (tokenizer.added.has(id) ? "" : bytes));
    this.template = form.template();
    this.lineStarts = [0];
    for (let i = 0; i < form.lines; i++) {
      this.lineStarts.push(this.lineStarts[i] + form.length + [...form.ends[i % form.ends.length]].length);
    }
    const known = new Set(this.bytes);
    // A tokenizer with a token for each byte can spell any character; another one only those that are tokens.
    this.hasAllBytes = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(byte)).every((byte) => known.has(byte));
    this.letterTokens = new Map();
  }

  /** Return what prevents this tokenizer from this form: "letters", "marks", or an empty string. */
  problem() {
    if (this.hasAllBytes) return "";
    const decoded = this.bytes.map((bytes) => bytes && decodeStart(bytes)).filter((split) => split && !split[1]);
    const characters = new Set(decoded.map(([text]) => text).filter((text) => [...text].length === 1));
    if (![...characters].some(isLetter)) return "letters";
    return this.template.every((place) => place === FREE || characters.has(place)) ? "" : "marks";
  }

  /** Return the prompt if it is the beginning of a poem in this form, else an empty text. */
  beginning(prompt) {
    const characters = [...prompt];
    const fits = (character, i) => (this.template[i] === FREE ? isLetter(character) : character === this.template[i]);
    return characters.length < this.template.length && characters.every(fits) ? prompt : "";
  }

  /** Return a function from the new ids to which tokens may follow a prompt. */
  after(prompt) {
    const start = toBytes(this.beginning(prompt));
    return (ids) => this._allowed(start + ids.map((id) => this.bytes[id]).join(""));
  }

  /** Return which tokens may follow, 1 or 0 for each; the poem may end inside a character. */
  _allowed(poem) {
    const mask = new Uint8Array(this.bytes.length);
    const [text, rest] = decodeStart(poem);
    const characters = [...text];
    const place = this.template[characters.length];
    let ids;
    if (place === undefined) {
      ids = [this.tokenizer.end];
    } else if (place === FREE) {
      ids = this._nextLetters(characters, rest);
    } else {
      ids = this._nextMarks(this.template.slice(characters.length).join("").split(FREE)[0], rest);
    }
    for (const id of ids) mask[id] = 1;
    return mask;
  }

  /** Return the ids that spell fixed marks: the tokenizer's choice, or all that fit after the bytes `rest`. */
  _nextMarks(marks, rest) {
    const bytes = toBytes(marks);
    if (!rest) {
      const [first] = this.tokenizer.encode(marks);
      if (first !== undefined && this.bytes[first] && bytes.startsWith(this.bytes[first])) return [first];
    }
    return [...this.bytes.keys()].filter((id) => this.bytes[id] && bytes.startsWith(this.bytes[id], rest.length));
  }

  /** Return the ids that continue the last line of a text and `rest`, the first bytes of a letter, if any. */
  _nextLetters(characters, rest) {
    const number = this.lineStarts.findLastIndex((start) => start <= characters.length);
    const lineOf = (i) => characters.slice(this.lineStarts[i], this.lineStarts[i] + this.form.length);
    const line = lineOf(number);
    const left = this.form.length - line.length;
    const repeats = new Set(); // what would repeat an earlier line
    for (let i = 0; i < number; i++) {
      const earlier = lineOf(i);
      if (line.every((letter, n) => letter === earlier[n])) repeats.add(earlier.slice(line.length).join(""));
    }
    const fits = ({ text, rest: open, size }) => {
      if (size !== left) return size < left;
      if (!open) return !repeats.has(text);
      const last = [...repeats].filter((end) => end.startsWith(text) && [...end].length === size);
      const taken = last.map((end) => toBytes([...end].at(-1))).filter((bytes) => bytes.startsWith(open));
      return letterStarts().get(open) > taken.length;
    };
    return this._findLetterTokens(rest).filter(fits).map(({ id }) => id);
  }

  /** Return the tokens that consist of letters after the first bytes of a letter: their id, text and open bytes, and
   * the number of letters that each contains or begins. */
  _findLetterTokens(start) {
    if (this.letterTokens.has(start)) return this.letterTokens.get(start);
    const found = [];
    this.bytes.forEach((bytes, id) => {
      // 0x80 to 0xBF continue a character in UTF-8: they are needed after `start`, and wrong without it.
      if (!bytes || (bytes >= "\x80" && bytes < "\xc0") !== Boolean(start)) return;
      const split = decodeStart(start + bytes);
      if (!split) return;
      const [text, rest] = split;
      const letters = [...text];
      if (!letters.every(isLetter) || (rest && !(this.hasAllBytes && letterStarts().has(rest)))) return;
      found.push({ id, text, rest, size: letters.length + (rest ? 1 : 0) });
    });
    this.letterTokens.set(start, found);
    return found;
  }
}

/** Return the characters in bytes, and the first bytes of one more; null for bytes that are not UTF-8. */
export function decodeStart(bytes) {
  const raw = Uint8Array.from(bytes, (letter) => letter.charCodeAt(0));
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(raw, { stream: true });
    return [text, bytes.slice(toBytes(text).length)];
  } catch {
    return null;
  }
}

let starts = null;

/** Return the first bytes of letters, with the number of letters that begin with them. */
function letterStarts() {
  if (starts) return starts;
  starts = new Map();
  for (let code = 0x80; code <= 0x10ffff; code++) {
    if (code >= 0xd800 && code < 0xe000) continue;
    const letter = String.fromCodePoint(code);
    if (!isLetter(letter)) continue;
    const bytes = toBytes(letter);
    for (let cut = 1; cut < bytes.length; cut++) starts.set(bytes.slice(0, cut), (starts.get(bytes.slice(0, cut)) ?? 0) + 1);
  }
  return starts;
}
