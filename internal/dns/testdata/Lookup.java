import java.net.InetAddress;
import java.net.UnknownHostException;

/** Prints the addresses of names, as Java's own resolver gives them. */
public class Lookup {
    public static void main(String[] names) {
        for (String name : names) {
            try {
                StringBuilder line = new StringBuilder(name + ":");
                for (InetAddress a : InetAddress.getAllByName(name)) {
                    line.append(' ').append(a.getHostAddress());
                }
                System.out.println(line);
            } catch (UnknownHostException e) {
                System.out.println(name + ": none");
            }
        }
    }
}
