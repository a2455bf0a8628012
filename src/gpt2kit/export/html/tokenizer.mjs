// Tokenizers in the JSON format of the library `tokenizers`: text to ids and back. Bytes are strings of letters below
// 256, which can be compared, cut and used as keys. html.py refuses tokenizers with parts that are not here.

const utf8 = new TextEncoder();
const METASPACE = "\u2581";
// GPT-2's split into words. \s is not that of JavaScript, which counts other characters as spaces.
const GPT2_WORDS =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
// Characters of Unicode 10 to 17 that the library's normalizers do not know and leave as they are, but browsers do not.
// Each range is as long as it can be without a character that the library changes, moves or joins with others.
const NEWER = new RegExp(
  "([" +
    "\u07fd\u0897-\u08d3\u09fe\u0c3c\u0d3b-\u0d3c\u0eba\u1715\u1abf-\u1aeb\u1df6-\u1dfa\u32ff" +
    "\ua7f1-\ua7f4\ua82c\uab69\u{105c9}-\u{107ba}\u{10d24}-\u{10f85}\u{11070}\u{1133b}" +
    "\u{11382}-\u{113d0}\u{1145e}\u{11839}-\u{11a99}\u{11d42}-\u{1612f}\u{16d63}-\u{16ff1}" +
    "\u{1ccd6}-\u{1ccf9}\u{1e030}-\u{1e6f5}\u{1f16c}\u{1fbf0}-\u{1fbf9}" +
    "]+)",
  "u",
);
const BYTE_TOKEN = /^<0x([0-9A-F]{2})>$/;

/** Return the UTF-8 bytes of a text. */
export function toBytes(text) {
  return Array.from(utf8.encode(text), (byte) => String.fromCharCode(byte)).join("");
}

/** Return the text of bytes; what is not UTF-8 becomes U+FFFD. */
export function fromBytes(bytes) {
  const raw = Uint8Array.from(bytes, (letter) => letter.charCodeAt(0));
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(raw); // which keeps a byte order mark
}

export class Tokenizer {
  /** `settings` is the JSON of the tokenizer, `end` the id of the end-of-text token, or null. */
  constructor(settings, end) {
    this.end = end;
    const { model } = settings;
    const pairs = Array.isArray(model.vocab) ? model.vocab.map(([token], id) => [token, id]) : Object.entries(model.vocab);
    this.ids = new Map(pairs);
    this.added = new Set(settings.added_tokens.map(({ id }) => id));
    this.tokens = [];
    for (const [token, id] of this.ids) this.tokens[id] = token;
    for (const { content, id } of settings.added_tokens) this.tokens[id] = content;
    // Names of special tokens in a text are ordinary text. Others are found, the longest first.
    const names = settings.added_tokens.filter(({ special }) => !special).map(({ content }) => content);
    names.sort((one, other) => other.length - one.length);
    this.named = new Map(settings.added_tokens.map(({ content, id }) => [content, id]));
    this.names = names.length ? new RegExp(`(${names.map(escapePattern).join("|")})`, "u") : null;
    this.normalize = normalizer(settings.normalizer);
    this.split = preTokenizer(settings.pre_tokenizer);
    this.encodeWord = model.type === "Unigram" ? unigram(model, this.ids) : bytePairs(model, this.ids);
    this.decodeTokens = decoder(settings.decoder);
    this.bytes = tokenBytes(this.tokens, this.added, JSON.stringify(settings.decoder));
  }

  /** Return the ids of a text. */
  encode(text) {
    const valid = new TextDecoder("utf-8", { ignoreBOM: true }).decode(utf8.encode(text)); // without half surrogate pairs
    const parts = this.names ? valid.split(this.names) : [valid];
    const ids = [];
    parts.forEach((part, number) => {
      if (number % 2) {
        ids.push(this.named.get(part));
      } else if (part) {
        const normalized = this.normalize(part);
        const words = normalized ? this.split([normalized], number === 0) : [];
        for (const word of words) for (const id of this.encodeWord(word)) ids.push(id);
      }
    });
    return ids;
  }

  /** Return the text of ids. */
  decode(ids) {
    const tokens = Array.from(ids, (id) => this.tokens[id]).filter((token) => token !== undefined);
    return tokens.length ? this.decodeTokens(tokens).join("") : "";
  }
}

/** Return the bytes that each id adds to a text. */
function tokenBytes(tokens, added, decoderJson) {
  const letters = decoderJson.includes('"ByteLevel"') ? byteLevelLetters() : null;
  const hasByteFallback = decoderJson.includes('"ByteFallback"');
  const isMetaspace = decoderJson.includes('"Metaspace"') || decoderJson.includes(`"${METASPACE}"`);
  return Array.from(tokens, (token, id) => {
    if (token === undefined) return "";
    if (added.has(id)) return toBytes(token);
    if (letters && [...token].every((letter) => letters.has(letter))) {
      return [...token].map((letter) => letters.get(letter)).join("");
    }
    const byte = hasByteFallback && BYTE_TOKEN.exec(token);
    if (byte) return String.fromCharCode(parseInt(byte[1], 16));
    return toBytes(isMetaspace ? token.replaceAll(METASPACE, " ") : token);
  });
}

/** Map GPT-2's letters to bytes: printable Latin-1 stands for itself, letters from 256 on for the other bytes. */
function byteLevelLetters() {
  const isPlain = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  const letters = new Map();
  let next = 256;
  for (let byte = 0; byte < 256; byte++) {
    letters.set(String.fromCharCode(isPlain(byte) ? byte : next++), String.fromCharCode(byte));
  }
  return letters;
}

// Normalizers: functions from a text to a text.

function normalizer(settings) {
  if (!settings) return (text) => text;
  const { type } = settings;
  if (type === "Sequence") {
    const steps = settings.normalizers.map(normalizer);
    return (text) => steps.reduce((result, step) => step(result), text);
  }
  if (["NFC", "NFD", "NFKC", "NFKD"].includes(type)) {
    return (text) => text.split(NEWER).map((part, i) => (i % 2 ? part : part.normalize(type))).join("");
  }
  // Each character by itself, so that a final sigma is one like any other.
  if (type === "Lowercase") return (text) => Array.from(text, (character) => character.toLowerCase()).join("");
  if (type === "Prepend") return (text) => (text ? settings.prepend + text : text);
  if (type === "Replace") return replacer(settings);
  if (type === "Precompiled") return precompiled(settings.precompiled_charsmap);
  throw new Error(`normalizer ${type}`);
}

/** Return SentencePiece's normalizer: a trie from bytes to places in a list of strings, and this list. */
function precompiled(charsmap) {
  const raw = Uint8Array.from(atob(charsmap), (letter) => letter.charCodeAt(0));
  const size = new DataView(raw.buffer).getUint32(0, true);
  const trie = new Uint32Array(raw.slice(4, 4 + size).buffer);
  const strings = raw.subarray(4 + size);
  const find = (text) => {
    // A double-array trie, as in the library Darts: units with a label, an offset, and a bit for the end of a key.
    const offset = (unit) => (unit >>> 10) << ((unit & 512) >> 6);
    let at = offset(trie[0]);
    for (const byte of utf8.encode(text)) {
      if (byte === 0) break;
      at ^= byte;
      const unit = trie[at];
      if ((unit & 0x800000ff) !== byte) break;
      at ^= offset(unit);
      if ((unit >>> 8) & 1) {
        const start = trie[at] & 0x7fffffff;
        return new TextDecoder("utf-8", { ignoreBOM: true }).decode(strings.subarray(start, strings.indexOf(0, start)));
      }
    }
    return undefined;
  };
  const characters = new Intl.Segmenter("en", { granularity: "grapheme" });
  return (text) => {
    const parts = Array.from(characters.segment(text), ({ segment }) => {
      const whole = utf8.encode(segment).length < 6 ? find(segment) : undefined;
      return whole ?? Array.from(segment, (character) => find(character) ?? character).join("");
    });
    return parts.join("");
  };
}

function replacer({ pattern, content }) {
  // Of an expression (?m:before\Kafter), which charsmap.py writes, nothing is replaced, and the content is inserted.
  // After it there is nothing, or a condition.
  const insertion = /^\(\?m:(.*)\\K(.*)\)$/su.exec(pattern.Regex ?? "");
  if (insertion) {
    const place = new RegExp(translatePattern(insertion[1] + insertion[2]), "gsu");
    return (text) => text.replace(place, (before) => before + content);
  }
  const expression = toExpression(pattern);
  return (text) => text.replace(expression, () => content);
}

/** Return a regular expression for a pattern of the library, which is a string or an expression of Oniguruma. */
function toExpression({ String: string, Regex: regex }) {
  return new RegExp(string === undefined ? translatePattern(regex) : escapePattern(string), "gu");
}

function escapePattern(text) {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}

/** Translate an expression of Oniguruma to JavaScript's. */
export function translatePattern(pattern) {
  const expanded = pattern.replace(/\(\?i:([^()]*)\)/g, (_, part) => `(?:${part.replace(/[a-z]/gi, anyCase)})`);
  let [result, isInClass] = ["", false];
  for (let i = 0; i < expanded.length; i++) {
    const letter = expanded[i];
    if (letter === "\\") {
      const next = expanded[++i];
      const classes = { s: "\\p{White_Space}", S: "\\P{White_Space}", d: "\\p{Nd}", D: "\\P{Nd}" };
      if (classes[next]) result += classes[next];
      else if (next === "x") result += "\\u"; // \x{41}
      else if (/[A-Za-z]/.test(next) || "\\^$.*+?()[]{}|/-".includes(next)) result += letter + next;
      else result += next; // JavaScript refuses a backslash before other characters
    } else if (isInClass) {
      isInClass = letter !== "]";
      result += letter;
    } else if (letter === "[") {
      isInClass = true;
      result += letter;
      if (expanded[i + 1] === "^") result += expanded[++i];
    } else if (letter === "^" || letter === "$") {
      // The start and the end of a line. [^\n] would not do: it matches no half of a surrogate pair.
      result += letter === "^" ? "(?:^|(?<=\\n)(?!$))" : "(?:$|(?=\\n))";
    } else {
      result += letter;
    }
  }
  return result;
}

function anyCase(letter) {
  const more = { s: "\u017f", k: "\u212a" }; // the long s and the sign for kelvin
  const lower = letter.toLowerCase();
  return `[${lower}${letter.toUpperCase()}${more[lower] ?? ""}]`;
}

// Pre-tokenizers: functions from parts of a text to smaller parts. `isStart` is true if the text begins with them.

function preTokenizer(settings) {
  if (!settings) return (parts) => parts;
  const { type } = settings;
  if (type === "Sequence") {
    const steps = settings.pretokenizers.map(preTokenizer);
    return (parts, isStart) => steps.reduce((result, step) => step(result, isStart), parts);
  }
  if (type === "Split") {
    const expression = toExpression(settings.pattern);
    return eachPart((part) => split(part, expression, settings.behavior, settings.invert));
  }
  if (type === "Digits") {
    return eachPart((part) => split(part, /\p{N}/gu, settings.individual_digits ? "Isolated" : "Contiguous"));
  }
  if (type === "ByteLevel") return byteLevel(settings);
  if (type === "Metaspace") return metaspace(settings);
  throw new Error(`pre-tokenizer ${type}`);
}

function eachPart(step) {
  return (parts, isStart) => parts.flatMap((part, i) => step(part, isStart && i === 0)).filter((part) => part);
}

function byteLevel(settings) {
  const expression = new RegExp(translatePattern(GPT2_WORDS), "gu");
  const bytes = new Map([...byteLevelLetters()].map(([letter, byte]) => [byte, letter]));
  return eachPart((part) => {
    const text = settings.add_prefix_space && !part.startsWith(" ") ? ` ${part}` : part;
    const words = settings.use_regex === false ? [text] : split(text, expression, "Isolated");
    return words.map((word) => Array.from(toBytes(word), (byte) => bytes.get(byte)).join(""));
  });
}

function metaspace({ replacement, prepend_scheme: scheme, split: isSplit }) {
  return eachPart((part, isFirst) => {
    let text = part.replaceAll(" ", replacement);
    const isPrepended = scheme === "always" || (scheme === "first" && isFirst);
    if (isPrepended && !text.startsWith(replacement)) text = replacement + text;
    return isSplit === false ? [text] : split(text, new RegExp(escapePattern(replacement), "gu"), "MergedWithNext");
  });
}

/** Split a text at the matches of an expression; `behavior` says where the matches go. */
function split(text, expression, behavior, isInverted = false) {
  const parts = []; // each text, and whether it is a match
  let last = 0;
  for (const match of text.matchAll(expression)) {
    if (match.index > last) parts.push([text.slice(last, match.index), isInverted]);
    parts.push([match[0], !isInverted]);
    last = match.index + match[0].length;
  }
  if (last < text.length) parts.push([text.slice(last), isInverted]);
  if (behavior === "Removed") return parts.filter(([, isMatch]) => !isMatch).map(([part]) => part);
  if (behavior === "MergedWithNext") parts.reverse();
  const result = [];
  let previous = null;
  for (const [part, isMatch] of parts) {
    const isMerged =
      behavior === "Contiguous" ? previous === isMatch : behavior !== "Isolated" && isMatch && !previous && result.length > 0;
    if (!isMerged) result.push(part);
    else if (behavior === "MergedWithNext") result.push(part + result.pop());
    else result.push(result.pop() + part);
    previous = isMatch;
  }
  return behavior === "MergedWithNext" ? result.reverse() : result;
}

// Models: functions from a word to ids.

function byteIds(ids) {
  const table = Array.from({ length: 256 }, (_, byte) => {
    return ids.get(`<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`);
  });
  return (text) => {
    const result = Array.from(utf8.encode(text), (byte) => table[byte]);
    return result.includes(undefined) ? null : result;
  };
}

function bytePairs(model, ids) {
  const merges = new Map(); // pair to its rank and the id of both together
  model.merges.forEach((merge, rank) => {
    const [left, right] = Array.isArray(merge) ? merge : merge.split(" ");
    merges.set(pairKey(ids.get(left), ids.get(right)), [rank, ids.get(left + right)]);
  });
  const toByteIds = model.byte_fallback ? byteIds(ids) : () => null;
  const unknown = model.unk_token === null || model.unk_token === undefined ? undefined : ids.get(model.unk_token);
  return (word) => {
    if (model.ignore_merges && ids.has(word)) return [ids.get(word)];
    return merge(characterIds(word, ids, toByteIds, unknown, model.fuse_unk), merges);
  };
}

function pairKey(left, right) {
  return left * 2 ** 24 + right;
}

/** Return the ids of a word's characters. A character that has none becomes bytes, or the unknown token. */
function characterIds(word, ids, toByteIds, unknown, isFused) {
  const result = [];
  let isUnknownLeft = false; // an unknown token that later ones may join
  for (const character of word) {
    const id = ids.get(character);
    const bytes = id === undefined ? toByteIds(character) : null;
    if (id !== undefined) {
      if (isUnknownLeft) result.push(unknown);
      isUnknownLeft = false;
      result.push(id);
    } else if (bytes) {
      result.push(...bytes);
    } else if (unknown !== undefined) {
      if (isUnknownLeft && !isFused) result.push(unknown);
      isUnknownLeft = true;
    }
  }
  if (isUnknownLeft) result.push(unknown);
  return result;
}

/** Merge neighbours, the pair with the lowest rank first, and of equal ones the first. */
function merge(word, merges) {
  const pair = (i) => merges.get(pairKey(word[i], word[i + 1]));
  const ranks = word.map((_, i) => (i + 1 < word.length ? (pair(i)?.[0] ?? Infinity) : Infinity));
  while (true) {
    let best = -1;
    for (let i = 0; i + 1 < word.length; i++) if (ranks[i] < (ranks[best] ?? Infinity)) best = i;
    if (best < 0) return word;
    word.splice(best, 2, pair(best)[1]);
    ranks.splice(best, 1);
    for (const i of [best - 1, best]) if (i >= 0) ranks[i] = i + 1 < word.length ? (pair(i)?.[0] ?? Infinity) : Infinity;
  }
}

function unigram(model, ids) {
  const scores = model.vocab.map(([, score]) => score);
  const longest = Math.max(...model.vocab.map(([token]) => token.length));
  const unknownScore = Math.min(...scores) - 10;
  const toByteIds = model.byte_fallback ? byteIds(ids) : () => null;
  return (word) => {
    const result = [];
    for (const piece of bestPieces(word, ids, scores, longest, unknownScore, model.unk_id)) {
      const id = ids.get(piece);
      result.push(...(id !== undefined ? [id] : (toByteIds(piece) ?? [model.unk_id])));
    }
    return result;
  };
}

/** Return the pieces of a word with the highest total score. Neighbouring unknown characters are one piece. */
function bestPieces(word, ids, scores, longest, unknownScore, unknown) {
  const best = [{ score: 0 }]; // for each end, the best way to get there
  const offer = (end, score, start, id) => {
    if (!best[end] || score > best[end].score) best[end] = { score, start, id };
  };
  let size = 1;
  for (let start = 0; start < word.length; start += size) {
    size = word.codePointAt(start) > 0xffff ? 2 : 1;
    const { score } = best[start];
    let hasCharacter = false;
    for (let end = start + 1; end <= Math.min(start + longest, word.length); end++) {
      const id = ids.get(word.slice(start, end));
      if (id === undefined) continue;
      offer(end, scores[id] + score, start, id);
      hasCharacter ||= end === start + size;
    }
    if (!hasCharacter) offer(start + size, unknownScore + score, start, unknown);
  }
  const pieces = [];
  let wasUnknown = false;
  for (let end = word.length; end > 0; end = best[end].start) {
    const piece = word.slice(best[end].start, end);
    const isUnknown = best[end].id === unknown;
    if (isUnknown && wasUnknown) pieces.push(piece + pieces.pop());
    else pieces.push(piece);
    wasUnknown = isUnknown;
  }
  return pieces.reverse();
}

// Decoders: functions from tokens to parts of a text.

function decoder(settings) {
  const { type } = settings;
  if (type === "Sequence") {
    const steps = settings.decoders.map(decoder);
    return (tokens) => steps.reduce((result, step) => step(result), tokens);
  }
  if (type === "ByteLevel") {
    const letters = byteLevelLetters();
    const bytes = (token) => [...token].map((letter) => letters.get(letter));
    return (tokens) => {
      const raw = tokens.map((token) => (bytes(token).includes(undefined) ? toBytes(token) : bytes(token).join("")));
      return [fromBytes(raw.join(""))];
    };
  }
  if (type === "ByteFallback") return decodeByteTokens;
  if (type === "Fuse") return (tokens) => [tokens.join("")];
  if (type === "Replace") return (tokens) => tokens.map(replacer(settings));
  if (type === "Strip") return (tokens) => tokens.map((token) => strip(token, settings));
  if (type === "Metaspace") return (tokens) => tokens.map((token, i) => fromMetaspace(token, i === 0, settings));
  throw new Error(`decoder ${type}`);
}

/** Replace tokens of bytes by their text. If it is not UTF-8, each of them becomes U+FFFD. */
function decodeByteTokens(tokens) {
  const result = [];
  let bytes = [];
  const flush = () => {
    if (!bytes.length) return;
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(bytes));
      result.push(text);
    } catch {
      result.push(...bytes.map(() => "\ufffd"));
    }
    bytes = [];
  };
  for (const token of tokens) {
    const byte = BYTE_TOKEN.exec(token);
    if (byte) {
      bytes.push(parseInt(byte[1], 16));
    } else {
      flush();
      result.push(token);
    }
  }
  flush();
  return result;
}

/** Remove at most `start` and `stop` times a letter from the ends of a token. */
function strip(token, { content, start, stop }) {
  let [first, last] = [0, token.length];
  while (first < start && token[first] === content) first++;
  while (token.length - last < stop && last > first && token[last - 1] === content) last--;
  return token.slice(first, last);
}

function fromMetaspace(token, isFirst, { replacement, prepend_scheme: scheme }) {
  return token.replaceAll(replacement, isFirst && scheme !== "never" ? "" : " ");
}
