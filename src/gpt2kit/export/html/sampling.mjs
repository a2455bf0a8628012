// Sampling of the next token from logits, in the order of sampling.py: repetition penalty, temperature, top_k, top_p,
// min_p, draw.
import { uniform } from "./draws.mjs";

/** Return the softmax of the logits, as new numbers. */
export function probabilities(logits) {
  const largest = logits.reduce((one, other) => Math.max(one, other), -Infinity);
  const result = logits.map((logit) => Math.exp(logit - largest));
  const sum = result.reduce((one, other) => one + other, 0);
  return result.map((value) => value / sum);
}

/** Return the most likely tokens with their probabilities. */
export function mostLikely(values, count) {
  const best = [];
  values.forEach((value, token) => {
    if (best.length === count && value <= best[count - 1].probability) return;
    const at = best.findIndex(({ probability }) => probability < value);
    best.splice(at < 0 ? best.length : at, 0, { token, probability: value });
    best.length = Math.min(best.length, count);
  });
  return best;
}

/** Divide positive logits of tokens that a text contains by the penalty, and multiply negative ones by it. */
export function penalizeRepetition(logits, ids, penalty) {
  if (penalty === 1) return;
  for (const id of new Set(ids)) logits[id] = logits[id] > 0 ? logits[id] / penalty : logits[id] * penalty;
}

/** Return the id of the next token. Changes the logits. */
export function sample(logits, options, number, position) {
  if (!options.temperature) return logits.reduce((best, logit, token) => (logit > logits[best] ? token : best), 0);
  for (let i = 0; i < logits.length; i++) logits[i] /= options.temperature;
  if (options.topK) keepTopK(logits, options.topK);
  if (options.topP < 1) keepTopP(logits, options.topP);
  if (options.minP > 0) keepMinP(logits, options.minP);
  return sampleAt(logits, uniform(options.seed, number, position));
}

/** Keep the k most likely tokens, and those exactly as likely as the last of them. */
export function keepTopK(logits, k) {
  if (k >= logits.length) return;
  const least = logits.slice().sort()[logits.length - k];
  exclude(logits, (i) => logits[i] < least);
}

/** Keep the fewest most likely tokens that reach probability p together, and those as likely as the last of them. */
export function keepTopP(logits, p) {
  const values = probabilities(logits);
  const total = (numbers) => numbers.reduce((one, other) => one + other, 0);
  let ordered = values.filter((value) => value > 1e-4); // usually enough, and far fewer to sort
  if (total(ordered) < p) ordered = values.slice();
  ordered.sort().reverse();
  let [sum, count] = [0, 0];
  while (count < ordered.length && sum < p) sum += ordered[count++];
  exclude(logits, (i) => values[i] < ordered[count - 1]);
}

/** Keep the tokens with at least this fraction of the most likely token's probability. */
export function keepMinP(logits, fraction) {
  const values = probabilities(logits);
  const least = fraction * values.reduce((one, other) => Math.max(one, other), 0);
  exclude(logits, (i) => values[i] < least);
}

/** Return the id whose interval of cumulative probabilities contains the point in [0, 1). */
export function sampleAt(logits, point) {
  const values = probabilities(logits);
  const target = point * values.reduce((one, other) => one + other, 0);
  let [sum, last] = [0, 0];
  for (let i = 0; i < values.length; i++) {
    sum += values[i];
    if (values[i] > 0) last = i;
    if (sum > target) return i;
  }
  return last;
}

function exclude(logits, isExcluded) {
  for (let i = 0; i < logits.length; i++) if (isExcluded(i)) logits[i] = -Infinity;
}
