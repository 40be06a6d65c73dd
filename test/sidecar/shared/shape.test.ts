import { describe, expect, it } from 'vitest'
import {
  dictionary,
  flag,
  integer,
  list,
  object,
  oneOf,
  optional,
  parseJson,
  tagged,
  text,
} from '../../../sidecar/shared/shape.ts'

const shape = object({
  name: text(5, /^[a-z]+$/),
  age: optional(integer(0, 150)),
  tags: list(oneOf('red', 'green'), 2),
  inner: object({ on: flag, ports: dictionary(integer(1, 9), 2) }),
})
const good = { name: 'bob', tags: ['red'], inner: { on: true, ports: { a: 1 } } }

const bad: [string, unknown, string][] = [
  ['nothing', undefined, 'Cannot read the message: expected an object.'],
  ['null', null, 'Cannot read the message: expected an object.'],
  ['a list', [], 'Cannot read the message: expected an object.'],
  ['a string', 'x', 'Cannot read the message: expected an object.'],
  ['a missing field', { ...good, name: undefined }, 'Cannot read name: expected a string.'],
  ['a number for a text', { ...good, name: 7 }, 'Cannot read name: expected a string.'],
  ['a long text', { ...good, name: 'abcdef' }, 'Cannot read name: expected at most 5 characters.'],
  ['a text out of pattern', { ...good, name: 'A' }, 'Cannot read name: expected a string like /^[a-z]+$/.'],
  ['a broken integer', { ...good, age: 1.5 }, 'Cannot read age: expected an integer from 0 to 150.'],
  ['an integer below', { ...good, age: -1 }, 'Cannot read age: expected an integer from 0 to 150.'],
  ['an integer above', { ...good, age: 151 }, 'Cannot read age: expected an integer from 0 to 150.'],
  [
    'null for what is optional',
    { ...good, age: null },
    'Cannot read age: expected an integer from 0 to 150.',
  ],
  ['an object for a list', { ...good, tags: {} }, 'Cannot read tags: expected a list.'],
  ['a long list', { ...good, tags: ['red', 'red', 'red'] }, 'Cannot read tags: expected at most 2 items.'],
  ['a bad item', { ...good, tags: ['red', 'blue'] }, 'Cannot read tags[1]: expected one of red, green.'],
  ['a bad flag', with_({ on: 1 }), 'Cannot read inner.on: expected true or false.'],
  [
    'a bad value of a dictionary',
    with_({ ports: { a: 0 } }),
    'Cannot read inner.ports.a: expected an integer from 1 to 9.',
  ],
  [
    'too many keys',
    with_({ ports: { a: 1, b: 1, c: 1 } }),
    'Cannot read inner.ports: expected at most 2 keys.',
  ],
]

function with_(inner: object): object {
  return { ...good, inner: { ...good.inner, ...inner } }
}

describe('a shape', () => {
  it('gives back what fits', () => {
    expect(shape(good, '')).toEqual(good)
    expect(shape({ ...good, age: 3 }, '')).toEqual({ ...good, age: 3 })
  })

  it('drops what it does not know, so that newer peers may send more', () => {
    expect(shape({ ...good, more: 1, inner: { ...good.inner, deeper: {} } }, '')).toEqual(good)
  })

  it.each(bad)('refuses %s and names the path', (_name, value, message) => {
    expect(() => shape(value, '')).toThrow(expect.objectContaining({ code: 'bad-message', message }))
  })

  it('takes own fields only', () => {
    expect(() => shape(Object.create(good), '')).toThrow('Cannot read name: expected a string.')
    expect(() => object({ constructor: text(5) } as never)({}, '')).toThrow('Cannot read constructor')
  })

  it('does not touch a prototype', () => {
    const evil =
      '{"inner":{"on":true,"ports":{"__proto__":5}},"__proto__":{"polluted":1},"name":"bob","tags":[]}'
    const read = parseJson(evil, shape)
    expect(Object.getPrototypeOf(read)).toBe(Object.prototype)
    expect(Object.getPrototypeOf(read.inner.ports)).toBe(Object.prototype)
    expect('polluted' in {}).toBe(false)
  })

  it('tells tagged objects apart', () => {
    const either = tagged({ a: object({ x: flag }), b: object({}) })
    expect(either({ type: 'a', x: true }, '')).toEqual({ type: 'a', x: true })
    expect(either({ type: 'b', x: 9 }, '')).toEqual({ type: 'b' })
    for (const type of ['c', 'toString', '__proto__', 7, undefined, null, ['a']])
      expect(() => either({ type, x: true }, '')).toThrow('Cannot read type: expected one of a, b.')
    expect(() => either({ type: 'a' }, 'list[3]')).toThrow('Cannot read list[3].x: expected true or false.')
  })

  it('keeps the cause of what is not JSON', () => {
    expect(() => parseJson('{', shape)).toThrow(
      expect.objectContaining({ code: 'bad-message', cause: expect.any(SyntaxError) }),
    )
  })
})
