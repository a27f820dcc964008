// The filter: whole words that a trial must contain, and comparisons such as r<=8 excitation=tanh status:failed.
function compile(text, keyOf) {  // keyOf: name → key or undefined; returns a function of a trial's facts and words
  const tests = [];
  for (const token of text.match(/(?:[^\s"]+|"[^"]*")+/g) ?? []) {
    const parts = /^([^<>=:!"]+)(<=|>=|!=|=|:|<|>)(.+)$/.exec(token);
    const key = parts && keyOf(parts[1].toLowerCase());
    if (key) {
      tests.push(comparison(key, parts[2], parts[3].replaceAll('"', "")));
    } else if (parts && parts[2] !== "=" && parts[2] !== ":") {
      throw new Error(`unknown column ${parts[1]}`);
    } else {
      const wanted = pattern(token.replaceAll('"', ""));
      tests.push((facts, words) => words.some(word => wanted.test(word)));
    }
  }
  return (facts, words) => tests.every(test => test(facts, words));
}
function comparison(key, operator, wanted) {
  const number = numberOf(wanted), same = pattern(wanted);
  const equal = value => Number.isNaN(number) || Number.isNaN(numberOf(value)) ? same.test(value) : numberOf(value) === number;
  return facts => {
    const value = facts[key];
    if (value === undefined || value === null) return operator === "!=";
    switch (operator) {
      case "<": return numberOf(value) < number;
      case ">": return numberOf(value) > number;
      case "<=": return numberOf(value) <= number;
      case ">=": return numberOf(value) >= number;
      case "!=": return !equal(String(value));
      default: return equal(String(value));
    }
  };
}
function numberOf(text) {
  const parts = /^([-+−]?\d*\.?\d+(?:e[-+]?\d+)?)([kMG]?)$/.exec(String(text).trim());
  return parts ? Number(parts[1].replace("−", "-")) * ({ k: 1e3, M: 1e6, G: 1e9 }[parts[2]] ?? 1) : NaN;
}
function pattern(text) {  // matches a whole word, with * as a wildcard
  return new RegExp(`^${text.split("*").map(part => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join(".*")}$`, "i");
}
const wordsOf = text => [text, ...text.split(/[\s,;()]+/)].filter(Boolean);
