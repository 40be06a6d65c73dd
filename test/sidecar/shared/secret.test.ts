import { inspect } from 'node:util'
import { describe, expect, it } from 'vitest'
import { createLogger } from '../../../sidecar/shared/log.ts'
import { Secret } from '../../../sidecar/shared/secret.ts'

const value = 'hunter2-0123456789'
const secret = new Secret(value)

const printers: [string, () => string][] = [
  ['a template', () => `${secret}`],
  ['String()', () => String(secret)],
  ['concatenation', () => 'token: '.concat(secret as unknown as string)],
  ['JSON', () => JSON.stringify({ token: secret })],
  ['inspect', () => inspect({ token: secret }, { depth: 9, showHidden: true })],
  ['the keys of it', () => JSON.stringify([Object.entries(secret), Object.getOwnPropertyNames(secret)])],
  ['the logger', () => logged((log) => log.info({ token: secret, list: [secret] }, 'with a secret'))],
  ['an error in the logger', () => logged((log) => log.error(new Error(`bad ${secret}`)))],
]

function logged(use: (log: ReturnType<typeof createLogger>) => void): string {
  let lines = ''
  use(
    createLogger('test', 'trace', {
      write: (line) => {
        lines += line
      },
    }),
  )
  return lines
}

describe('a secret', () => {
  it.each(printers)('is not printed by %s', (_name, print) => {
    expect(print()).not.toContain(value)
  })

  it('is marked where it was left out', () => {
    expect(`${secret} ${JSON.stringify(secret)} ${inspect(secret)}`).toBe('[secret] "[secret]" [secret]')
  })

  it('gives its value to who asks for it by name', () => {
    expect(secret.reveal()).toBe(value)
  })
})
