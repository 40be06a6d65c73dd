import { EdgeMeshError } from './errors.ts'

/**
 * Checks that untrusted JSON has the shape we expect. A checker returns the value, typed, or throws a
 * `bad-message` that names the path. Unknown fields are dropped, so that a newer peer may send more.
 */
export type Shape<T> = (value: unknown, path: string) => T
export type Of<S> = S extends Shape<infer T> ? T : never

function refuse(path: string, expected: string): never {
  throw new EdgeMeshError('bad-message', `Cannot read ${path || 'the message'}: expected ${expected}.`)
}

export function text(maxLength: number, pattern?: RegExp): Shape<string> {
  return (value, path) => {
    if (typeof value !== 'string') refuse(path, 'a string')
    if (value.length > maxLength) refuse(path, `at most ${maxLength} characters`)
    if (pattern !== undefined && !pattern.test(value)) refuse(path, `a string like ${pattern}`)
    return value
  }
}

export function integer(min: number, max: number): Shape<number> {
  return (value, path) => {
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      refuse(path, `an integer from ${min} to ${max}`)
    }
    return value
  }
}

export const flag: Shape<boolean> = (value, path) =>
  typeof value === 'boolean' ? value : refuse(path, 'true or false')

export function oneOf<const T extends string | number>(...values: T[]): Shape<T> {
  return (value, path) =>
    values.includes(value as T) ? (value as T) : refuse(path, `one of ${values.join(', ')}`)
}

export function list<T>(item: Shape<T>, maxLength: number): Shape<T[]> {
  return (value, path) => {
    if (!Array.isArray(value)) refuse(path, 'a list')
    if (value.length > maxLength) refuse(path, `at most ${maxLength} items`)
    return value.map((v, i) => item(v, `${path}[${i}]`))
  }
}

export function optional<T>(shape: Shape<T>): Shape<T | undefined> {
  return (value, path) => (value === undefined ? undefined : shape(value, path))
}

/** String keys (at most `maxKeys`, not `__proto__`) to values of one shape. */
export function dictionary<T>(shape: Shape<T>, maxKeys: number): Shape<Record<string, T>> {
  return (value, path) => {
    const entries = Object.entries(plainObject(value, path))
    if (entries.length > maxKeys) refuse(path, `at most ${maxKeys} keys`)
    return Object.fromEntries(entries.map(([k, v]) => [k, shape(v, `${path}.${k}`)]))
  }
}

type Fields = Record<string, Shape<unknown>>
type OptionalKeys<F extends Fields> = { [K in keyof F]: undefined extends Of<F[K]> ? K : never }[keyof F]
type ObjectOf<F extends Fields> = { [K in Exclude<keyof F, OptionalKeys<F>>]: Of<F[K]> } & {
  [K in OptionalKeys<F>]?: Exclude<Of<F[K]>, undefined>
}

export function object<F extends Fields>(fields: F): Shape<ObjectOf<F>> {
  const entries = Object.entries(fields)
  return (value, path) => {
    const from = plainObject(value, path)
    const to: Record<string, unknown> = {}
    for (const [key, shape] of entries) {
      const checked = shape(Object.hasOwn(from, key) ? from[key] : undefined, path ? `${path}.${key}` : key)
      if (checked !== undefined) to[key] = checked
    }
    return to as ObjectOf<F>
  }
}

/** An object told apart by its field `type`. */
export function tagged<M extends Record<string, Shape<unknown>>>(
  variants: M,
): Shape<{ [K in keyof M]: { type: K } & Of<M[K]> }[keyof M]> {
  return (value, path) => {
    const from = plainObject(value, path)
    const type = from.type
    const shape = typeof type === 'string' && Object.hasOwn(variants, type) ? variants[type] : undefined
    if (shape === undefined)
      refuse(path ? `${path}.type` : 'type', `one of ${Object.keys(variants).join(', ')}`)
    return { ...(shape(value, path) as object), type } as never
  }
}

function plainObject(value: unknown, path: string): Record<string, unknown> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) refuse(path, 'an object')
  return value as Record<string, unknown>
}

/** Parses JSON text and checks it; both failures are `bad-message`. */
export function parseJson<T>(json: string, shape: Shape<T>): T {
  let value: unknown
  try {
    value = JSON.parse(json)
  } catch (error) {
    throw new EdgeMeshError('bad-message', 'Cannot read the message: it is not JSON.', error)
  }
  return shape(value, '')
}
