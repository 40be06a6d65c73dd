import { describe, expect, it } from 'vitest'
import { answerTo, EncodedAnswers } from '../../../sidecar/dns/encoded.ts'

const message = (id: number, rest: string) =>
  Buffer.concat([Buffer.from([id >> 8, id & 255]), Buffer.from(rest)])
const encoded = (rest: string) => ({ answer: message(1, rest), rcode: 'NOERROR' })

describe('encoded answers', () => {
  it('are found by all of a message but its id, and carry the id of the one that asks', () => {
    const answers = new EncodedAnswers()
    answers.put(message(1, 'asked'), 5, encoded('answered'))
    const found = answers.get(message(0xabcd, 'asked'), 5)
    expect(found && answerTo(message(0xabcd, 'asked'), found)).toEqual(message(0xabcd, 'answered'))
    expect(found?.answer).toEqual(message(1, 'answered'))
    expect(answers.get(message(1, 'askeD'), 5)).toBeUndefined()
  })

  it.each([4, 6])('are of one version: not of %d', (version) => {
    const answers = new EncodedAnswers()
    answers.put(message(1, 'asked'), 5, encoded('answered'))
    expect(answers.get(message(1, 'asked'), version)).toBeUndefined()
    answers.put(message(1, 'other'), version, encoded('answered'))
    expect(answers.size).toBe(1)
  })

  it('are bounded in number, and in the size of what was asked', () => {
    const answers = new EncodedAnswers()
    answers.put(message(1, 'x'.repeat(511)), 1, encoded('answered'))
    expect(answers.size).toBe(0)
    let most = 0
    for (let i = 0; i < 10_000; i++) {
      answers.put(message(1, `${i}`), 1, encoded('answered'))
      most = Math.max(most, answers.size)
    }
    expect(most).toBe(1_000)
    expect(answers.get(message(2, '9999'), 1)).toBeDefined()
  })
})
