import { workerData } from 'node:worker_threads'
import { PumpWorker } from './orders.ts'

new PumpWorker(workerData).run()
