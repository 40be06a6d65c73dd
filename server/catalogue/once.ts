/** What an object has become, and what else that depended on. */
interface Compilation {
  inputs: readonly unknown[]
  value?: unknown
  error?: unknown
  warnings: string[]
}

const compilations = new WeakMap<object, Compilation>()

/** Objects do not change. Of the thousands of a cluster only a few are new each time, and only those are compiled. */
export function once<T>(
  object: object,
  inputs: readonly unknown[],
  warn: (sentence: string) => void,
  make: (warn: (sentence: string) => void) => T,
): T {
  if (typeof object !== 'object' || object === null) return make(warn) // written by hand, and wrong
  let known = compilations.get(object)
  if (known === undefined || known.inputs.some((input, i) => input !== inputs[i])) {
    const warnings: string[] = []
    try {
      known = { inputs, warnings, value: make((sentence) => warnings.push(sentence)) }
    } catch (error) {
      known = { inputs, warnings, error }
    }
    compilations.set(object, known)
  }
  for (const sentence of known.warnings) warn(sentence)
  if (known.error !== undefined) throw known.error
  return known.value as T
}
