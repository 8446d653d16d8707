import java.io.BufferedReader;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.channels.SocketChannel;
import java.nio.charset.StandardCharsets;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * Lets a Java program (16 or later, no library) take part in snapshots and clones.
 *
 * <pre>
 * Liveclone.watch("shop", event -> {
 *     if (event.equals("cloned")) {
 *         ids = new SplittableRandom(ByteBuffer.wrap(new SecureRandom().generateSeed(8)).getLong());
 *         sslContext = newContext();            // session tickets are sealed with keys that it holds
 *     }
 * });
 * </pre>
 *
 * SecureRandom's usual implementation on Linux mixes in what the kernel gives at least every 100 ms, so it is left alone.
 * Random, SplittableRandom, ThreadLocalRandom and Math.random() draw from a state that a clone has in common with its source:
 * the first two are made anew; of the last two nothing that must be unique may be drawn.
 */
public final class Liveclone {
    /** Renews what belongs to one machine alone; what it throws is told to the host. */
    public interface Handler {
        void handle(String event) throws Exception;
    }

    private static final UnixDomainSocketAddress SOCKET = UnixDomainSocketAddress.of("/run/liveclone/applications");
    private static final Pattern ID = Pattern.compile("\"id\":\\s*(\\d+)");
    private static final Pattern EVENT = Pattern.compile("\"event\":\\s*\"(\\w+)\"");
    private static final Pattern UUID = Pattern.compile("\"uuid\":\\s*\"([^\"]*)\"");
    private static final long LOOK_AGAIN_MS = 500;

    private final String name;
    private final Handler handler;
    private String generation = "";
    private boolean subscribed;

    private Liveclone(String name, Handler handler) {
        this.name = name;
        this.handler = handler;
    }

    /** Calls the handler for "prepare", "cloned" and "resumed", in a thread of its own. */
    public static void watch(String name, Handler handler) {
        Liveclone client = new Liveclone(name, handler);
        Thread thread = new Thread(client::run, "liveclone");
        thread.setDaemon(true);
        thread.start();
    }

    private void run() {
        while (true) {
            try (SocketChannel channel = SocketChannel.open(StandardProtocolFamily.UNIX)) {
                channel.connect(SOCKET);
                say(channel, "{\"subscribe\": \"" + name + "\"}");
                BufferedReader lines = new BufferedReader(Channels.newReader(channel, StandardCharsets.UTF_8));
                for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                    take(channel, line);
                }
            } catch (IOException error) {
                // No agent, or it has just been started anew.
            }
            try {
                Thread.sleep(LOOK_AGAIN_MS);
            } catch (InterruptedException error) {
                return;
            }
        }
    }

    private void take(SocketChannel channel, String line) throws IOException {
        Matcher id = ID.matcher(line);
        Matcher event = EVENT.matcher(line);
        Matcher uuid = UUID.matcher(line);
        String now = uuid.find() ? uuid.group(1) : generation;
        if (event.find() && id.find()) {
            generation = now;
            String error = call(event.group(1));
            say(channel, "{\"id\": " + id.group(1) + (error == null ? ", \"ok\": true}" : ", \"error\": " + error + "}"));
        } else if (subscribed && !now.equals(generation)) {
            generation = now; // the machine has changed while the agent was away
            call("cloned");
        } else {
            generation = now;
        }
        subscribed = true;
    }

    /** Returns null, or the reason of the failure as a JSON string. */
    private String call(String event) {
        try {
            handler.handle(event);
            return null;
        } catch (Exception error) {
            return '"' + error.toString().replaceAll("[^ !#-\\[\\]-~]", "?") + '"';
        }
    }

    private static void say(SocketChannel channel, String line) throws IOException {
        ByteBuffer data = ByteBuffer.wrap((line + "\n").getBytes(StandardCharsets.UTF_8));
        while (data.hasRemaining()) {
            channel.write(data);
        }
    }
}
