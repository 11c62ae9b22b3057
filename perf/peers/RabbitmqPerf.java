// The fastest client of RabbitMQ streams: produces into a stream, or reads it, and says how fast.
//
//   java -cp JARS RabbitmqPerf.java PORT produce STREAM COUNT VALUE_BYTES
//   java -cp JARS RabbitmqPerf.java PORT read STREAM COUNT
//
// What stream-perf-test does, for a number of records in place of a time: one producer, each
// record's confirm counted (a refused one ends it), or one consumer from the first offset. Values
// are opaque bytes, as the Python client sends them. The clock runs from the first send until the
// last confirm, or from asking for the consumer until the last record; connecting is not in it.

import com.rabbitmq.stream.Consumer;
import com.rabbitmq.stream.ConfirmationHandler;
import com.rabbitmq.stream.Environment;
import com.rabbitmq.stream.OffsetSpecification;
import com.rabbitmq.stream.Producer;
import com.rabbitmq.stream.codec.SimpleCodec;
import com.rabbitmq.stream.compression.Compression;
import java.time.Duration;
import java.util.Locale;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

public class RabbitmqPerf {
  private static final int SUB_ENTRY = 100; // records of one
  private static final long SUB_ENTRY_BYTES = 500_000; // at most, as a frame holds 1 MiB
  private static final int UNCONFIRMED = 100_000;
  private static final long LIMIT_S = 300;

  public static void main(String[] words) throws Exception {
    int port = Integer.parseInt(words[0]);
    long count = Long.parseLong(words[3]);
    try (Environment environment =
        Environment.builder().host("127.0.0.1").port(port).codec(new SimpleCodec()).build()) {
      long tookNs =
          words[1].equals("produce")
              ? produce(environment, words[2], count, Integer.parseInt(words[4]))
              : read(environment, words[2], count);
      System.out.printf(Locale.ROOT, "%.1f records/s%n", count * 1e9 / tookNs);
    }
  }

  private static long produce(Environment environment, String stream, long count, int valueBytes)
      throws InterruptedException {
    byte[] value = new byte[valueBytes];
    ThreadLocalRandom.current().nextBytes(value);
    CountDownLatch done = new CountDownLatch(1);
    AtomicLong left = new AtomicLong(count);
    AtomicInteger refused = new AtomicInteger();
    ConfirmationHandler confirmed =
        status -> {
          if (!status.isConfirmed()) refused.set(status.getCode());
          if (left.decrementAndGet() == 0) done.countDown();
        };
    int together = (int) Math.max(1, Math.min(SUB_ENTRY, SUB_ENTRY_BYTES / valueBytes));
    try (Producer producer =
        environment.producerBuilder().stream(stream)
            .subEntrySize(together)
            .compression(Compression.NONE)
            .batchPublishingDelay(Duration.ofMillis(10)) // the last, incomplete batch waits for it
            .maxUnconfirmedMessages(UNCONFIRMED)
            .build()) {
      long began = System.nanoTime();
      for (long sent = 0; sent < count; sent++) {
        producer.send(producer.messageBuilder().addData(value).build(), confirmed);
      }
      await(done, "confirmed", left.get());
      long took = System.nanoTime() - began;
      if (refused.get() != 0) throw new IllegalStateException("refused: " + refused.get());
      return took;
    }
  }

  private static long read(Environment environment, String stream, long count)
      throws InterruptedException {
    CountDownLatch done = new CountDownLatch(1);
    AtomicLong bytes = new AtomicLong();
    long[] found = {0}; // of the one thread that handles a consumer's records
    long began = System.nanoTime();
    try (Consumer consumer =
        environment.consumerBuilder().stream(stream)
            .offset(OffsetSpecification.first())
            .messageHandler(
                (context, message) -> {
                  bytes.setPlain(bytes.getPlain() + message.getBodyAsBinary().length);
                  if (++found[0] == count) done.countDown();
                })
            .build()) {
      await(done, "read", count);
      return System.nanoTime() - began;
    }
  }

  private static void await(CountDownLatch done, String what, long left)
      throws InterruptedException {
    if (!done.await(LIMIT_S, TimeUnit.SECONDS)) {
      throw new IllegalStateException("not all were " + what + "; at first " + left);
    }
  }
}
