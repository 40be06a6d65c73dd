import { once } from 'node:events'
import type { AddressInfo } from 'node:net'
import { expect, it } from 'vitest'
import { WebSocket, WebSocketServer } from 'ws'
import { frameOf } from '../../server/frame.ts'

it('a frame of any length is a message, in its order among those that ws sends', async () => {
  const texts = [0, 1, 125, 126, 65_535, 65_536, 200_000].map(
    (length) => 'ü'.repeat(length / 2) + 'x'.repeat(length % 2),
  )
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1', perMessageDeflate: false })
  server.on('connection', (socket, { socket: stream }) => {
    for (const text of texts) {
      stream.write(frameOf(text))
      socket.send(`${Buffer.byteLength(text)}`)
    }
    socket.close()
  })
  await once(server, 'listening')
  const client = new WebSocket(`ws://127.0.0.1:${(server.address() as AddressInfo).port}`)
  const got: string[] = []
  client.on('message', (data, isBinary) => got.push(isBinary ? 'binary' : String(data)))
  await once(client, 'close')
  server.close()
  expect(got).toEqual(texts.flatMap((text) => [text, `${Buffer.byteLength(text)}`]))
})
